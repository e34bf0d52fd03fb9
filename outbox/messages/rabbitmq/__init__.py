"""RabbitMQ: the only package that knows AMQP, and pika. Its extra: pip install "outbox-engine[rabbitmq]"."""
