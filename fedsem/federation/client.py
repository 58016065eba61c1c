"""The ClientApp: a Flower node trains the receivers that a message names."""

from __future__ import annotations

import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedsem.federation.records import decode_tasks, encode_replies
from fedsem.plan import plan_of_text
from fedsem.training import train

app = ClientApp()


@app.train()
def train_receivers(message: Message, context: Context) -> Message:
    """Train each receiver of the message and send back their replies."""
    # One thread: two on contended cores were measured 10x slower, and sums must not depend on their number.
    torch.set_num_threads(1)
    text, tasks = decode_tasks(message.content)
    return Message(content=encode_replies(train(plan_of_text(text), tasks)), reply_to=message)
