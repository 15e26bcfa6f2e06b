"""All that is measured, in the order in which it runs: a line each, with its bars."""

from benchmarks.trainer import kills, optimizer_share, pretrained, processes, scored_offline, step_speed, stream
from benchmarks.trainer.bench import Measurement

MEASUREMENTS: dict[str, Measurement] = {
    "kills": Measurement(kills.kills, at_most={"kills": 0, "kills_leftovers": 0}, figures=8),
    "student_tokens_per_s": Measurement(
        step_speed.student_tokens_per_s, at_least={"student_tokens_per_s": 1.5}, figures=2
    ),
    "against_before": Measurement(step_speed.against_before, at_least={"against_before": 1.3}, figures=2),
    "optimizer_share": Measurement(optimizer_share.optimizer_share, at_most={"optimizer_share": 0.25}, figures=0),
    "scored_offline": Measurement(
        scored_offline.scored_offline, at_most={"scored_offline": 80, "scored_offline_wait": 0.01}
    ),
    "accumulate": Measurement(processes.accumulate, at_most={"accumulate": 1e-5}),
    "ddp": Measurement(processes.ddp, at_most={"ddp": 1e-5}, figures=2),
    "fsdp": Measurement(processes.fsdp, at_most={"fsdp": 1e-5}, figures=2),
    "stream": Measurement(stream.stream, at_least={"stream_throughput": 0.8}, at_most={"stream": 1500}, figures=2),
    "pretrained": Measurement(pretrained.pretrained, figures=0),
}
