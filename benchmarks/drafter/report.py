"""What was measured, as a results file and as one table."""

from typing import Any

from benchmarks.benchmark_results import Bars, BenchmarkResults
from benchmarks.drafter.differences import TIE_NATS

_BARS = {
    "identical": 0.0,
    "sampled": 0.01,
    "mean_accepted": 2.2,
    "speed_1": 1.4,
    "speed_1_vs_ngram": 1.0,
    "speed_1_vs_suffix": 1.0,
    "speed_8": 1.1,
    "speed_8_least": 0.97,
    "draft_cost": 0.25,
    "swaps": 0.0,
    "swaps_bad_used": 0.0,
    "learning": 1.15,
}
BARS = Bars(_BARS, at_most={"identical", "draft_cost", "swaps", "swaps_bad_used"})
_TIES = ", ".join(f"{nats:g} nats in {dtype}" for dtype, nats in TIE_NATS.items())
#: Ids of --only; each brings along what stands beside it.
IDS = ("passes", "identical", "sampled", "mean_accepted", "speed_1", "speed_8", "draft_cost", "swaps")

NOTES = f"""\
All engines are vLLM's CPU build with the same teacher, in one run on one machine, in turns; prompts are read anew each
  time. Ids without a method's name are those of the first --checkpoint.
identical, mean_accepted, speed_8: every prompt once, those of a domain 8 at a time, greedy, to the teacher's end of the
  text or the plan's new_tokens. low and high bound the three domains.
identical counts texts that part from vLLM's alone where the teacher is not of two minds. A tie is a place where both
  tokens are as likely as its likeliest, as far as its format rounds ({_TIES}),
  when it reads that beginning by itself; identical_ties counts those. identical_1 is the same for one request at a
  time. Texts of vLLM alone part so too, one request at a time from eight at once: identical_control counts them.
mean_accepted: tokens of the texts over passes behind their prompts, bonus token included; the mean of three domains.
speed_1: one request at a time, prompts' reading included; the median of the repeats, low and high bound them.
draft_cost: mean time in propose() over a pass of one token of as many requests, by the clock of vLLM's worker.
pass_N: a pass of N tokens of one request, pass_N_8 of eight; fixed drafts in turns. needed_N: tokens a pass must give
  for 1.4 times vLLM alone with drafts of N at the measured cost of drafting, scheduling and messages.
speed_1_flat: the measured acceptance and cost of drafting, where a pass of a whole draft takes as long as one of one
  token.
sampled: T = 1; a permutation test of the squared maximum mean discrepancy over the first tokens of texts behind the
  same prompts. sampled_control is its p where the other side is drawn at T = 0.8, which it must find.
swaps: in engines of its own, checkpoints with the same weights published while eight texts are written again and again,
  six of them spoilt, each in another way; texts that are not the teacher's own (ties apart), and bad ones that drafted.
""".splitlines()


class DrafterBenchResults(BenchmarkResults):
    """``bench_drafter_<time>.json``.

    Attributes:
        plan: how much was measured.
        setting: the teacher, what it computed in, vLLM's version and how each method was configured.
    """

    plan: dict[str, Any]
    setting: dict[str, Any]
