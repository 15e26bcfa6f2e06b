import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks.drafter import methods, results
from benchmarks.drafter.differences import differences, first_difference, judged
from benchmarks.drafter.engines import WrittenTexts
from benchmarks.drafter.fixed_drafter import LENGTHS, FixedDrafter
from benchmarks.drafter.measures import Single, Together
from benchmarks.drafter.passes import (
    Pass,
    acceptance,
    acceptance_needed,
    draft_cost,
    seconds_by_length,
    step_seconds,
    tokens_needed,
)
from benchmarks.drafter.plan import QUICK, DrafterPlan
from benchmarks.drafter.report import BARS
from benchmarks.drafter.run import num_figures
from benchmarks.drafter.two_sample import two_sample_p
from latentforge.core.results import Result


def _pass(*requests: tuple[int | None, int], began: float = 0.0, seconds: float = 0.1, drafting: float = 0.0) -> Pass:
    return Pass(began, seconds, drafting, requests)


def test_tokens_per_pass_count_the_bonus_and_leave_prompts_and_what_lies_beyond_the_end_out() -> None:
    # Two texts: the prompts' pass gives a token each; then 3 of 4 and 0 of 2 are accepted, then nothing is drafted.
    passes = [_pass((None, 1), (None, 1)), _pass((4, 4), (2, 1)), _pass((0, 1), (0, 1))]
    texts = [[1] * 6, [1] * 3]
    found = acceptance(passes, texts, most_drafted=4)
    assert (found.passes, found.tokens) == (4, 7)
    assert found.tokens_per_pass == 7 / 4
    # The same passes, but the first text ended within its draft.
    assert acceptance(passes, [[1] * 4, [1] * 3], 4).tokens_per_pass == 5 / 4
    # Nothing was drafted.
    assert acceptance([_pass((None, 1)), _pass((0, 1)), _pass((0, 1))], [[1] * 3], 4).tokens_per_pass == 1


def test_acceptance_by_position_is_of_the_tokens_that_were_reached() -> None:
    passes = [_pass((3, 4)), _pass((3, 2)), _pass((1, 2)), _pass((2, 1)), _pass((0, 1))]
    found = acceptance(passes, [[1] * 11], most_drafted=4)
    assert found.drafted == (4, 3, 2, 0)
    # The second place: drafted three times, of which once behind a refused token. A draft of one token ends before it.
    assert found.reached == (4, 2, 1, 0)
    assert found.accepted == (3, 1, 1, 0)
    assert found.by_position == [3 / 4, 1 / 2, 1.0, None]


def test_a_pass_that_reads_a_prompt_is_not_timed_and_requests_of_other_lengths_are_told_apart() -> None:
    passes = [
        _pass((None, 1), (0, 1), seconds=9),
        _pass((0, 1), (0, 1), seconds=1),
        _pass((8, 1), (8, 2), seconds=3),
        _pass((8, 1), (0, 2), seconds=7),
        _pass((8, 1), seconds=5),
    ]
    assert seconds_by_length(passes, 2) == {1: [1], 9: [3]}
    assert seconds_by_length(passes, 1) == {9: [5]}


def test_a_step_lasts_until_the_next_pass_begins() -> None:
    passes = [
        _pass((None, 1), began=0.0),
        _pass((0, 1), began=1.0, drafting=0.5),
        _pass((0, 1), began=3.0),
        _pass((8, 1), began=9.0),
        _pass((0, 1), began=20.0),
    ]
    assert step_seconds(passes, 1) == [1.5]


def test_drafting_costs_its_mean_time_over_a_plain_pass() -> None:
    passes = [_pass((None, 1), drafting=9.0), _pass((2, 1), drafting=0.1), _pass((0, 1), drafting=0.3)]
    assert draft_cost(passes, 0.4, at_once=1) == pytest.approx(0.5)
    assert draft_cost(passes, 0.4, at_once=2) is None


def test_floors_are_what_the_parts_cost_times_the_gain() -> None:
    # A pass of nine takes twice as long, and drafting half a pass.
    assert tokens_needed(1.4, plain_seconds=1.0, pass_seconds=2.0, draft_seconds=0.5) == pytest.approx(3.5)
    (floor,) = results.floors({1: 10.0, 9: 20.0}, step_ms=12.0, cost=0.5)
    # Scheduling takes 2 ms of either.
    assert floor.id == "needed_8"
    assert floor.value == pytest.approx(1.4 * (22 + 5) / 12)
    assert results.flat_speed("", tokens_per_pass=3.0, cost=0.5).value == 2.0


@pytest.mark.parametrize(("share", "drafted"), [(0.0, 8), (0.5, 2), (0.65, 8), (1.0, 4)])
def test_the_acceptance_that_is_needed_gives_the_tokens(share: float, drafted: int) -> None:
    rng = random.Random(0)

    def simulated() -> float:
        total = 0
        for _ in range(20_000):
            given = 1
            while given <= drafted and rng.random() < share:
                given += 1
            total += given
        return total / 20_000

    needed = acceptance_needed(simulated(), drafted)
    assert needed == pytest.approx(share, abs=0.01)


def test_no_acceptance_gives_more_than_the_whole_draft() -> None:
    assert acceptance_needed(9.1, 8) is None
    floor = Result(id="needed_8", value=9.1, unit="")
    assert "no draft of that length" in results.note_on_floor(floor, 8)


def test_the_first_difference_may_be_an_end() -> None:
    assert first_difference([1, 2, 3], [1, 2, 3]) is None
    assert first_difference([1, 2, 3], [1, 5, 3]) == 1
    assert first_difference([1, 2], [1, 2, 3]) == 2
    assert first_difference([1, 2, 3], [1, 2]) == 2
    found = differences([[1, 2], [4, 5, 6]], [[1, 2], [4, 5]])
    assert [(one.prompt, one.position, one.plain, one.drafted) for one in found] == [(1, 2, 6, None)]


def test_a_tie_is_between_the_likeliest_and_within_rounding() -> None:
    (one,) = differences([[7, 8]], [[7, 9]])
    tie = judged(one, [[8, -1.0], [9, -1.1]], "bfloat16")
    assert tie.kind == "tie"
    assert tie.gap == pytest.approx(0.1)
    # In float32 so much is no rounding, and a third token was never near.
    assert judged(one, [[8, -1.0], [9, -1.1]], "float32").kind == "other"
    assert judged(one, [[8, -1.0], [3, -1.1]], "bfloat16").kind == "other"
    assert judged(one, [[8, -1.0], [9, -2.0]], "bfloat16").kind == "other"
    # Three are equal, and two that are so far below another are none of its choices.
    assert judged(one, [[3, -1.0], [8, -1.0], [9, -1.1]], "bfloat16").kind == "tie"
    assert judged(one, [[3, -0.5], [8, -1.0], [9, -1.1]], "bfloat16").kind == "other"
    found = results.identical("", [tie, judged(one, [[8, -1.0], [9, -2.0]], "bfloat16")], 192)
    assert [(result.id, result.value) for result in found.results] == [("identical", 1), ("identical_ties", 1)]


def _texts(rng: random.Random, count: int, weights: Sequence[float]) -> list[list[int]]:
    ids = range(len(weights))
    return [rng.choices(ids, weights, k=rng.randint(3, 8)) for _ in range(count)]


def test_two_samples_of_one_distribution_are_rarely_told_apart() -> None:
    rng = random.Random(1)
    flat = [1.0] * 20
    found = [two_sample_p([_texts(rng, 60, flat)], [_texts(rng, 60, flat)], 8, 200, seed) for seed in range(40)]
    # Each p is as likely as any other: 40 draws below 0.05 are 2, and seven have a chance of 1 in 300.
    assert sum(p < 0.05 for p in found) < 7
    assert 0.3 < sum(found) / len(found) < 0.7


def test_two_samples_of_different_distributions_are_told_apart() -> None:
    rng = random.Random(2)
    flat, peaked = [1.0] * 20, [3.0, *[1.0] * 19]
    assert two_sample_p([_texts(rng, 500, flat)], [_texts(rng, 500, peaked)], 8, 500, 0) < 0.01
    # The same tokens at every position, in another order within a text: whole beginnings differ.
    risen = [[a, a] for a in rng.choices(range(2), k=200)]
    mixed = [rng.choices(range(2), k=2) for _ in range(200)]
    assert two_sample_p([risen], [mixed], 2, 500, 0) < 0.01
    # A difference behind one prompt of two is one.
    same = [_texts(rng, 100, flat) for _ in range(2)]
    assert two_sample_p([same[0], risen], [same[1], mixed], 2, 500, 0) < 0.01


def test_lengths_beyond_what_is_compared_do_not_matter() -> None:
    one, other = [[1, 2, 3]] * 30, [[1, 2, 9]] * 30
    assert two_sample_p([one], [other], 2, 100, 0) == 1.0
    assert two_sample_p([one], [other], 3, 100, 0) < 0.02


def _written(tokens: int, seconds: float, passes: Sequence[Pass] = ()) -> WrittenTexts:
    return WrittenTexts([[1] * tokens], seconds, list(passes), [])


def test_speeds_are_medians_of_ratios_of_what_was_written_together() -> None:
    ours = [[_written(10, 1.0), _written(20, 1.0)], [_written(30, 1.0)], [_written(30, 3.0)]]
    theirs = [[_written(10, 2.0)], [_written(6, 1.0)], [_written(10, 1.0)]]
    found = results.speeds("speed_1", ours, theirs, "vLLM alone")
    assert (found.ratio, found.low, found.high) == (3.0, 1.0, 5.0)
    assert (found.value, found.baseline_value) == (15.0, 6.0)


def test_eight_at_once_count_as_a_whole_and_by_their_slowest_domain() -> None:
    ours = [_written(100, 1.0), _written(100, 1.0), _written(100, 2.0)]
    theirs = [_written(100, 2.0)] * 3
    found = Together(["documentation", "chat", "python"], {"alone": theirs, "student": ours})
    whole, least = results.together_speeds("student", "", found, "alone")
    assert whole.ratio == pytest.approx(6 / 4)
    assert least.value == 1.0


def test_mean_accepted_is_the_mean_of_domains_however_long_their_texts_are() -> None:
    def group(accepted: int, steps: int) -> WrittenTexts:
        passes = [_pass((None, 1)), *[_pass((4, accepted + 1))] * steps]
        return _written(1 + steps * (accepted + 1), 1.0, passes)

    found = Together(["documentation", "chat", "python"], {"student": [group(1, 10), group(2, 50), group(4, 1)]})
    of = results.accepted("student", "", found, 4)
    assert {result.id: result.value for result in of.results} == {
        "mean_accepted": pytest.approx((2 + 3 + 5) / 3),
        "mean_accepted_documentation": 2.0,
        "mean_accepted_chat": 3.0,
        "mean_accepted_python": 5.0,
    }
    assert of.measured["mean_accepted"]["chat"]["by_position"] == [1.0, 1.0, 0.0, None]


def test_one_domain_has_its_own_speed() -> None:
    written = {"alone": [[_written(10, 1.0), _written(10, 1.0)]], "student": [[_written(10, 0.5), _written(10, 2.0)]]}
    found = Single(["chat", "python"], written)
    assert results.single_speed_of("student", found, "alone", "chat") == 2.0
    assert results.single_speed_of("student", found, "alone", "python") == 0.5


def test_bars_are_met_from_the_right_side() -> None:
    assert BARS.met(Result(id="identical", value=0, unit="")) == "yes"
    assert BARS.met(Result(id="identical", value=1, unit="")) == "no"
    assert BARS.met(Result(id="draft_cost", value=0.3, unit="")) == "no"
    assert BARS.met(Result(id="sampled", value=0.02, unit="p")) == "yes"
    fast = Result.compared("speed_1", 15.0, "tokens/s", baseline="x", baseline_value=10.0)
    assert BARS.met(fast) == "yes"
    assert BARS.met(Result(id="speed_1_ngram", value=15.0, unit="")) == ""


def test_fixed_drafts_are_of_every_length_in_turns_and_none_behind_half_a_prompt() -> None:
    drafter = FixedDrafter(None)
    lengths = [[len(draft) for draft in drafter.propose([[5], [], [6, 7]], None, None)] for _ in LENGTHS]
    assert lengths == [[length, 0, length] for length in LENGTHS]
    assert drafter.propose([[1], [2, 3]], None, None) == [[], []]
    assert drafter.propose([[1], [2, 3]], None, None) == [[1, 1], [3, 3]]


def test_a_checkpoint_is_a_run_or_a_folder_of_runs() -> None:
    shipped = Path("models/stdlib-student")
    run = methods.student("student", shipped, QUICK, Path("nothing"))
    assert run.env["LATENTFORGE_FALLBACK_RUN"] == str(shipped.absolute())
    assert run.speculative is not None
    assert run.speculative["num_speculative_tokens"] == QUICK.most_drafted
    assert "LATENTFORGE_FALLBACK_RUN" not in methods.student("student", shipped.parent, QUICK, Path("nothing")).env
    with pytest.raises(ValueError, match="give its run's folder, models/stdlib-student"):
        methods.student("student", next(shipped.glob("step-*")), QUICK, Path("nothing"))
    with pytest.raises(ValueError, match="holds no checkpoint"):
        methods.student("student", Path("benchmarks"), QUICK, Path("nothing"))


def test_a_progress_bar_ends_where_the_figures_end() -> None:
    plan = DrafterPlan(per_domain=64, single_per_domain=8, repeats=3, sampled_prompts=4)
    everything = ["passes", "identical", "sampled", "speed_1"]
    assert num_figures(plan, 2, 1, everything) == 2 + 3 * 24 + 3 * 24 * 3 + 3 * 4
    assert num_figures(plan, 2, 1, ["sampled"]) == 12
    assert num_figures(QUICK, 0, 0, ["mean_accepted"]) == 3
