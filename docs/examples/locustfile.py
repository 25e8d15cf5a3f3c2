"""Users written by hand: orders are published to both brokers, worked off, and asked about.

Run it with `locust -f docs/examples/locustfile.py --headless -u 6 -t 10s`.
"""

from __future__ import annotations

import json
import random

from locust import constant_pacing, tag, task

from loadgen.locust import KafkaUser, RabbitMQUser


def an_order() -> bytes:
    """What a shop sends for each order."""
    number = random.randrange(1_000_000)  # noqa: S311 - a number for an example, no secret
    return json.dumps({"order": number, "items": [number % 7, number % 11]}).encode()


class Shop(RabbitMQUser):
    """Publishes an order ten times a second and waits for each confirmation."""

    queue = "example-orders"
    wait_time = constant_pacing(0.1)

    @tag("rabbitmq")
    @task
    def order(self) -> None:
        """One order."""
        self.client.publish(an_order(), content_type="application/json")


class Worker(RabbitMQUser):
    """Works off what shops order, and answers those who ask."""

    queue = "example-orders"

    @tag("rabbitmq")
    @task
    def work(self) -> None:
        """All orders that have come."""
        for delivery in self.client.consume(50, timeout_s=0.5):
            if delivery.reply_to:
                self.client.reply(delivery, b"on its way")


class Caller(RabbitMQUser):
    """Asks where its order is, and waits for the answer."""

    queue = "example-orders"
    wait_time = constant_pacing(0.2)

    @tag("rabbitmq", "request")
    @task
    def ask(self) -> None:
        """One question."""
        self.client.request(an_order())


class Logger(KafkaUser):
    """Appends a batch of events twice a second."""

    topic = "example-events"
    wait_time = constant_pacing(0.5)

    @tag("kafka")
    @task
    def append(self) -> None:
        """A hundred events at once."""
        self.client.publish_batch([an_order() for _ in range(100)])


class Reader(KafkaUser):
    """Reads the events, and answers those who ask."""

    topic = "example-events"
    group = "example-readers"

    @tag("kafka")
    @task
    def read(self) -> None:
        """Whatever has come."""
        for delivery in self.client.consume(500, timeout_s=0.5):
            if delivery.reply_to:
                self.client.reply(delivery, b"seen")


class Analyst(KafkaUser):
    """Asks whether an event was seen."""

    topic = "example-events"
    wait_time = constant_pacing(0.5)

    @tag("kafka", "request")
    @task
    def ask(self) -> None:
        """One question."""
        self.client.request(an_order())
