"""Networks: transmitter encoders and the multilayer perceptrons of the decoders."""
