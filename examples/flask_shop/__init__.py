"""The shop on Flask: orders are placed in the request's transaction, and people approve the large ones.

    export DATABASE_URL=postgresql://localhost/shop
    python -m examples.flask_shop.prepare
    gunicorn --config examples/flask_shop/gunicorn.conf.py --workers 4 examples.flask_shop.app:app
    curl -X POST localhost:8000/orders -H 'Content-Type: application/json' -d '{"customer": "ada", "cents": 250000}'
    curl -X POST localhost:8000/orders/1/approve -H 'Content-Type: application/json' -d '{"by": "sarah"}'
    pytest examples/flask_shop

Flask has no lifespan: gunicorn's hooks start and stop the worker in each of its processes. `python -m
examples.flask_shop.app` has it around the development server.
"""
