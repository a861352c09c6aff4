"""What callers and authors of algorithms import.

client = algomesh.client("YOUR_API_KEY")
print(client.algo("text/clean").pipe("hello   world").result)
"""

from algomesh.batch import Batch
from algomesh.clients import Client, client, connect
from algomesh.context import current
from algomesh.decorator import Algorithm, algorithm
from algomesh.errors import AlgorithmError, MeshError
from algomesh.naming import named as named  # a door more than a dozen: only who publishes pipelines needs it
from algomesh.pipeline import Pipeline, stage
from algomesh.pipeline import all_of as all  # algomesh.all(x=a, y=b), always by its module
from algomesh.response import Response

__all__ = [
    "Algorithm",
    "AlgorithmError",
    "Batch",
    "Client",
    "MeshError",
    "Pipeline",
    "Response",
    "algorithm",
    "all",
    "client",
    "connect",
    "current",
    "stage",
]
