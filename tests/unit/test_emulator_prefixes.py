"""What the emulator says of its prefix cache: figures that are known by hand."""

import time

import pytest

from llmpilot.emulator.options import Options
from llmpilot.emulator.prefixes import PAGE_TOKENS, KeptPrefixes, Words
from llmpilot.emulator.tokens import FIRST_ID, TEXTS


def test_a_prompt_is_found_up_to_its_last_whole_page() -> None:
    kept, prompt = KeptPrefixes(10_000), list(range(1000, 1040))  # 40 tokens: two pages and a half
    assert kept.find(Words(prompt, 0, 10), 40) == 0
    kept.keep(Words(prompt, 0, 10), 40)
    assert kept.find(Words(prompt, 0, 10), 40) == 32
    assert kept.find(Words(prompt[:32], 0, 10), 32) == 16, "its last token is always computed"
    assert kept.find(Words([*prompt[:31], 7, *prompt[32:]], 0, 10), 40) == 16
    assert kept.find(Words([7, *prompt[1:]], 0, 10), 40) == 0, "a page is known with all before it"


@pytest.mark.parametrize("made", [1, 8, 9, 24, 25, 26])
def test_an_answer_is_kept_but_for_its_last_token(made: int) -> None:
    kept, prompt = KeptPrefixes(10_000), list(range(2000, 2040))
    kept.keep(Words(prompt, 250, made), 40 + made - 1)
    answer = [FIRST_ID + (250 + k) % 256 for k in range(made)]
    follows = [*prompt, *answer, *range(3000, 3040)]
    found = kept.find(Words(follows, 9, 5), len(follows))
    assert found == (40 + made - 1) // PAGE_TOKENS * PAGE_TOKENS


def test_text_is_found_as_ids_are() -> None:
    kept, prompt = KeptPrefixes(10_000), "abcd" * 40
    kept.keep(Words(prompt, 3, 30), 40 + 29)
    answer = b"".join(TEXTS[3:33]).decode()
    assert kept.find(Words(prompt + answer + " and so on", 0, 1), 73) == 64
    odd = "abc" + prompt  # no whole token: the answer's first token shares one with it
    kept.keep(Words(odd, 3, 30), 41 + 29)
    assert kept.find(Words(odd + answer + " and so on, for long", 0, 1), 76) == 64


def test_what_was_used_least_recently_is_lost() -> None:
    kept = KeptPrefixes(4 * PAGE_TOKENS)
    prompts = [[1000 + k] * (2 * PAGE_TOKENS) for k in range(3)]
    for prompt in prompts[:2]:
        kept.keep(Words(prompt, 0, 1), 32)
    kept.keep(Words(prompts[0], 0, 1), 32)
    kept.keep(Words(prompts[2], 0, 1), 32)
    found = [kept.find(Words([*prompt, 5], 0, 1), 33) for prompt in prompts]
    assert found == [32, 0, 32]
    longer = [1003] * (9 * PAGE_TOKENS)
    kept.keep(Words(longer, 0, 1), len(longer))
    assert kept.find(Words(longer, 0, 1), len(longer)) == 64, "no more than there is room for"


def test_long_prompts_are_looked_up_in_milliseconds() -> None:
    kept, prompt = KeptPrefixes(200_000), list(range(1000, 101_000))
    kept.keep(Words(prompt, 0, 1), len(prompt))
    words = Words(prompt, 0, 1)
    begun = time.thread_time()
    assert kept.find(words, len(prompt)) == 99_984
    assert time.thread_time() - begun < 0.1


def test_the_cache_is_that_of_fixed_timing() -> None:
    with pytest.raises(ValueError, match="has its own cache"):
        Options(prefix_cache_tokens=1000)
