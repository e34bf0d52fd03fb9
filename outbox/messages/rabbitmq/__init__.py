"""Speaks AMQP with RabbitMQ. Only this package imports pika. Its extra: pip install "outbox-engine[rabbitmq]"."""
