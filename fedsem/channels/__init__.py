"""What happens on air: AWGN, Rayleigh and Rician links, and the sensing channel."""
