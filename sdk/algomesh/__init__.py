"""What callers and authors of algorithms import.

client = algomesh.client("YOUR_API_KEY")
print(client.algo("text/clean").pipe("hello   world").result)
"""

from algomesh.clients import AsyncClient, Client, client, connect
from algomesh.context import RunContext, current
from algomesh.decorator import Algorithm, algorithm
from algomesh.errors import AlgorithmError, MeshError
from algomesh.response import Metadata, Response

__all__ = [
    "Algorithm",
    "AlgorithmError",
    "AsyncClient",
    "Client",
    "MeshError",
    "Metadata",
    "Response",
    "RunContext",
    "algorithm",
    "client",
    "connect",
    "current",
]
