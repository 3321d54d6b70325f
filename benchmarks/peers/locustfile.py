"""The request is the environment's BODY, posted; a GET without one."""

from __future__ import annotations

import os

from locust import FastHttpUser, task

PATH = os.environ["TARGET_PATH"]
BODY = os.environ.get("BODY", "")


class Client(FastHttpUser):
    """Send the request again and again."""

    @task
    def send(self) -> None:
        """Send it once."""
        if BODY:
            self.client.post(PATH, data=BODY, headers={"Content-Type": "application/json"})
        else:
            self.client.get(PATH)
