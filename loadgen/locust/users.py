"""Users written by hand, for whoever knows HttpUser: `self.client` talks to RabbitMQ or Kafka.

```python
from locust import constant, task
from loadgen.locust import KafkaUser

class Orders(KafkaUser):
    topic = "orders"
    wait_time = constant(0.1)

    @task
    def place(self):
        self.client.publish(b"an order")
```

`host` is the broker's URL (`amqp://user:password@host:5672/vhost`, `kafka://host:9092`); without one it is the broker
that `--brokers` says, which by default are the project's own.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar, cast

import gevent
from gevent.lock import RLock
from locust import User, events
from locust.runners import MasterRunner

from loadgen.errors import LoadgenError
from loadgen.locust.client_kafka import KafkaClient
from loadgen.locust.client_rabbitmq import RabbitMQClient
from loadgen.locust.helper import Helper
from loadgen.locust.listeners import listen
from loadgen.locust.messages import unpack

if TYPE_CHECKING:
    from locust.env import Environment

    from loadgen.endpoint import BrokerName, Endpoint

listen()


class Endpoints:
    """Where brokers are, asked once of a native process: reaching or starting one takes time that gevent has not."""

    def __init__(self) -> None:
        self._lock = RLock()
        self._keeper: Helper | None = None
        self._found: dict[tuple[str, BrokerName], Endpoint] = {}

    def of(self, spec: str, broker: BrokerName) -> Endpoint:
        """The broker of this spec; raises LoadgenError where it cannot be reached."""
        with self._lock:
            if (spec, broker) not in self._found:
                if self._keeper is None:
                    self._keeper = Helper("keeper", lambda *_: None, lambda: None)
                    events.quitting.add_listener(lambda **_: self._close())
                answer = self._keeper.call("endpoints", brokers=spec, names=[broker])
                if "error" in answer:
                    raise LoadgenError(answer["error"])
                self._found[spec, broker] = unpack(answer["endpoints"])[broker]
            return self._found[spec, broker]

    def _close(self) -> None:
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.close()


endpoints = Endpoints()


@events.init.add_listener
def have_endpoints(environment: Environment, **_: Any) -> None:
    """Have brokers found before users begin, so that the first request is timed without; what fails fails there."""
    options = environment.parsed_options
    if options is None or isinstance(environment.runner, MasterRunner):
        return
    found = (environment.available_user_classes or environment.user_classes_by_name).values()
    users: list[Any] = [each for each in found if issubclass(cast("type", each), BrokerUser)]
    wanted = {(str(each.host or options.brokers), each.broker) for each in users}
    searches = [gevent.spawn(_search, *each) for each in wanted]
    if options.headless or options.autostart:
        gevent.joinall(searches)


def _search(spec: str, broker: BrokerName) -> None:
    with suppress(LoadgenError):
        endpoints.of(spec, broker)


class BrokerUser(User):
    """What both kinds share: a client that connects with the first request and leaves with the user."""

    abstract = True
    broker: ClassVar[BrokerName]
    client: Any

    def endpoint(self) -> Endpoint:
        """The broker, by this user's `host` or by `--brokers`."""
        spec = self.host or getattr(self.environment.parsed_options, "brokers", "local")
        return endpoints.of(str(spec), self.broker)

    def on_stop(self) -> None:
        """Leave in order; a subclass that has its own `on_stop` calls this one."""
        self.client.close()


class RabbitMQUser(BrokerUser):
    """A user whose `client` talks to RabbitMQ (`loadgen.locust.client_rabbitmq.RabbitMQClient`)."""

    abstract = True
    broker = "rabbitmq"
    queue: str = "loadgen-locust"
    """Published to and consumed from unless a call says otherwise; declared durable if it does not exist."""
    queue_type: str = "classic"
    prefetch: int = 100

    def __init__(self, environment: Any) -> None:
        super().__init__(environment)
        self.client = RabbitMQClient(
            self.endpoint, self.queue, self.queue_type, self.prefetch, environment.events.request.fire, self.context
        )


class KafkaUser(BrokerUser):
    """A user whose `client` talks to Kafka (`loadgen.locust.client_kafka.KafkaClient`)."""

    abstract = True
    broker = "kafka"
    topic: str = "loadgen-locust"
    """Published to and consumed from unless a call says otherwise; made if it does not exist."""
    group: str = ""
    """Its users share out the topic's partitions, on whatever workers they run, and go on where it has committed (else
    at the earliest message). Without one each user reads all messages."""
    knobs: ClassVar[dict[str, Any]] = {}
    """Of `loadgen.Kafka`, such as {"linger_ms": 5}."""

    def __init__(self, environment: Any) -> None:
        super().__init__(environment)
        self.client = KafkaClient(
            self.endpoint, self.topic, self.group, self.knobs, environment.events.request.fire, self.context
        )
