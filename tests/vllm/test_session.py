"""The session on vLLM: logits, cache and hidden states against transformers in float32."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import numpy as np
import pytest

from backends.hf.session import open_session as open_in_transformers
from backends.vllm.session import VllmSession, open_session
from exporter.errors import EngineUnfit, InputRefused
from tests.tiny import save_tiny

PROMPT = [5, 7, 200, 33, 9, 100, 65, 66, 67]
CLOSE = 1e-4  # float32 sums in another order; the logits are about 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # vLLM's attention on a CPU knows heads of 32 and more.
    return save_tiny("llama2", tmp_path_factory.mktemp("vllm") / "m", head_dim=32)


@pytest.fixture(scope="module")
def session(vllm_alone: Path, folder: Path) -> Generator[VllmSession]:
    opened = open_session(folder, 1)
    yield opened
    opened.close()
    opened.close()


@pytest.fixture(scope="module")
def reference(folder: Path):
    opened = open_in_transformers(folder, 1)
    yield opened
    opened.close()


@pytest.mark.vllm
def test_prefill_and_decode_give_the_reference_s_logits(session, reference):
    ours, theirs = session.prefill(PROMPT), reference.prefill(PROMPT)
    assert ours.shape == theirs.shape and ours.dtype == np.float32
    assert np.abs(ours - theirs).max() < CLOSE
    # None of these is what the model would have chosen, so the cache must hold what was fed.
    for token in (3, 250, 17, 17, 0, 271):
        ours, theirs = session.decode(token), reference.decode(token)
        assert ours.shape == theirs.shape
        assert np.abs(ours - theirs).max() < CLOSE


@pytest.mark.vllm
def test_a_cache_longer_than_a_page_is_read_as_it_was_written(session, reference):
    tokens = [(7 * i * i + 3) % 272 for i in range(150)]
    session.prefill(tokens[:120], logits="last")
    for token in tokens[120:]:
        last = session.decode(token)
    assert np.abs(last - reference.prefill(tokens)[-1]).max() < CLOSE


@pytest.mark.vllm
def test_the_last_logits_alone_and_a_new_prompt_starts_afresh(session, reference):
    session.prefill(PROMPT)
    session.decode(3)
    last = session.prefill(PROMPT[:4], logits="last")
    assert last.shape == (1, 272)
    assert np.abs(last[0] - reference.prefill(PROMPT[:4])[-1]).max() < CLOSE


@pytest.mark.vllm
def test_generate_is_greedy_and_timed(session, reference):
    session.prefill(PROMPT)  # a sequence that is held is given up
    made = session.generate(PROMPT, 12)
    assert made.tokens == reference.generate(PROMPT, 12).tokens
    assert len(made.seconds) == 12 and list(made.seconds) == sorted(set(made.seconds))
    assert session.generate(PROMPT, 1).tokens == made.tokens[:1]


@pytest.mark.vllm
def test_hidden_states_by_layer(session, reference):
    ours, theirs = session.hidden_states(PROMPT), reference.hidden_states(PROMPT)
    assert list(ours) == list(theirs) == ["embedding", "layer.0", "layer.1", "norm"]
    for key, values in theirs.items():
        assert ours[key].shape == values.shape
        assert np.abs(ours[key] - values).max() < CLOSE, key
    session.prefill(PROMPT)  # the hooks are gone, and the session lives on


@pytest.mark.vllm
def test_what_does_not_fit_is_refused_and_the_session_lives_on(session):
    session.prefill(PROMPT)
    for tokens in ([], [272], [-1], list(range(256))):
        with pytest.raises(EngineUnfit) as caught:
            session.prefill(tokens)
        assert caught.value.code == "engine-refused"
    with pytest.raises(EngineUnfit, match="before prefill"):
        session.decode(1)
    assert session.max_tokens == 255
    longest = [i % 272 for i in range(255)]
    assert session.prefill(longest, logits="last").shape == (1, 272)
    with pytest.raises(EngineUnfit, match="256 tokens"):
        session.decode(1)
    assert session.prefill(PROMPT).shape == (9, 272)


@pytest.mark.vllm
def test_facts(session, folder):
    facts = session.facts()
    assert (facts.engine, facts.version, facts.threads) == ("vllm", "0.32.0", 1)
    assert facts.weight_bytes == (folder / "model.safetensors").stat().st_size
    assert facts.load_seconds > 0 and facts.peak_rss_bytes > 1 << 28
    assert facts.extra["dtype"] == "float32"


@pytest.mark.vllm
def test_a_folder_that_vllm_refuses_is_told_with_its_words(vllm_alone, folder, tmp_path):
    broken = tmp_path / "m"
    broken.mkdir()
    (broken / "config.json").write_bytes((folder / "config.json").read_bytes())
    whole = (folder / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(whole[:-1000])
    with pytest.raises(EngineUnfit) as caught:
        open_session(broken, 1).close()
    assert caught.value.code == "engine-refused"
    assert "SafetensorError" in caught.value.found


def test_a_config_of_no_known_architecture_starts_nothing(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "nothing"}')
    with pytest.raises(InputRefused) as caught:
        open_session(tmp_path)
    assert caught.value.code == "arch-unsupported"
