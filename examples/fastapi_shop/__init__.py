"""A shop on FastAPI and SQLAlchemy: orders are placed in the request's transaction, and people approve the large ones.

export DATABASE_URL=postgresql+asyncpg://localhost/shop       # or postgresql+psycopg://…: the same app
python -m examples.fastapi_shop.prepare
uvicorn examples.fastapi_shop.app:app
curl -X POST localhost:8000/orders -H 'Content-Type: application/json' -d '{"customer": "ada", "cents": 250000}'
curl -X POST localhost:8000/orders/1/approve -H 'Content-Type: application/json' -d '{"by": "sarah"}'
pytest examples/fastapi_shop                                  # its tests
"""
