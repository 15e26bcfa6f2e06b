import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks.gateway.clients import ClientError, Clients, CompletionsServer, Load, ScoringJob
from benchmarks.gateway.counting_proxy import CountingProxy
from benchmarks.gateway.litellm import ProxyFinding, best_way
from benchmarks.gateway.measures import GatewayMeasures, Plan, Wire, agreement
from benchmarks.gateway.report import BARS, meets_bar, note_on_misses, results_of
from benchmarks.gateway.servers import cpu_seconds, fast_dtype, free_port, litellm_config
from benchmarks.gateway.workload import completions_request, dealt, grouped, held_out_sequences
from latentforge.teacher_client.sparse_rows import SparseRows

_MODEL = Path("models/stdlib-teacher")


@pytest.fixture
def echo_port() -> Iterator[int]:
    """A server that answers every byte with two, to one client after another."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection:
                while data := connection.recv(65536):
                    connection.sendall(data * 2)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield server.getsockname()[1]
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    thread.join()


def _exchange(port: int, data: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(data)
        received = b""
        while len(received) < 2 * len(data):
            received += client.recv(65536)
        return received


def test_the_proxy_passes_everything_on_and_counts_each_direction(echo_port: int) -> None:
    data = bytes(range(256)) * 4000  # more than one chunk, and more than a socket's buffer
    with CountingProxy(echo_port) as proxy:
        assert _exchange(proxy.port, data[:1000]) == data[:1000] * 2
        assert (proxy.sent, proxy.received) == (1000, 2000)
        proxy.reset()
        threads = [threading.Thread(target=_exchange, args=(proxy.port, data[:5000])) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (proxy.sent, proxy.received) == (15000, 30000)


def _measured() -> GatewayMeasures:
    return GatewayMeasures(
        direct={8: [100.0, 190.0, 300.0], 1: [100.0, 200.0, 300.0]},
        uncached=[110.0, 190.0, 330.0],
        gateway_cpu=[30.0, 20.0, 10.0],
        orjson_cpu=[10.0, 10.0, 10.0],
        shared_direct=[10.0, 10.0, 10.0],
        shared=[40.0, 30.0, 50.0],
        litellm=[1000.0, 2000.0, 1000.0],
        cached={"arrays": [5e5, 6e5, 7e5], "packed": [8e5, 9e5, 10e5], "redis": [6e5, 6e5, 6e5]},
        cached_cpu={"arrays": [6e5, 7e5, 8e5], "packed": [10e5, 11e5, 12e5], "redis": [7e5] * 3},
        http_cached=[3000.0, 5000.0, 6900.0],
        wire={"arrays": Wire(2.0, 138.0), "packed": Wire(2.0, 98.0), "vllm": Wire(5.0, 1495.0)},
    )


def test_a_ratio_above_one_is_ours_being_better_in_every_result() -> None:
    results = {result.id: result for result in results_of(_measured(), "LiteLLM")}
    assert results["uncached_vs_vllm"].ratio == pytest.approx(190 / 200)
    assert results["shared_vs_vllm"].ratio == 4.0
    # Fewer bytes are better, and twice orjson's CPU time is worse.
    assert results["wire_bytes"].ratio == pytest.approx(1500 / 140)
    assert results["wire_bytes_zstd"].ratio == 15.0
    assert results["parse_cpu"].ratio == 0.5
    assert results["cached_vs_litellm"].ratio == 900.0
    assert results["http_cached"].ratio == 25.0
    assert results["cached_positions_per_s"].ratio is None


def test_low_and_high_bound_the_ratio_over_repeats_and_the_value_where_there_is_no_baseline() -> None:
    results = {result.id: result for result in results_of(_measured(), "LiteLLM")}
    assert (results["uncached_vs_vllm"].low, results["uncached_vs_vllm"].high) == (190 / 200, 1.1)
    assert (results["parse_cpu"].low, results["parse_cpu"].high) == (1 / 3, 1.0)
    assert (results["cached_positions_per_s"].low, results["cached_positions_per_s"].high) == (8e5, 10e5)
    for result in results.values():
        between = result.value if result.baseline is None else result.ratio
        assert result.low is not None
        assert between is not None
        assert result.high is not None
        assert result.low <= between <= result.high, result


def test_bars_are_read_in_the_same_direction_as_ratios() -> None:
    results = {result.id: result for result in results_of(_measured(), "LiteLLM")}
    assert results.keys() >= BARS.keys()
    assert {id_ for id_, result in results.items() if meets_bar(result) is False} == {"parse_cpu"}
    assert meets_bar(results["cached_positions_per_s_arrays"]) is None


def test_without_litellm_its_result_says_so_without_a_baseline_value() -> None:
    measured = _measured()
    measured.litellm = []
    result = results_of(measured, "LiteLLM, which caches nothing of this")[0]
    assert (result.id, result.baseline_value, result.ratio) == ("cached_vs_litellm", None, None)
    assert result.value == 9e5
    assert meets_bar(result) is None


def test_vllm_counts_with_the_shape_of_request_that_suits_it_best() -> None:
    measured = _measured()
    assert measured.fastest_direct == 1
    # A later repeat may be slower than the other shape was; what is measured does not change for that.
    measured.direct = {8: [150.0], 1: [151.0, 100.0, 100.0]}
    assert measured.fastest_direct == 1


def test_a_cache_that_had_to_compute_is_not_passed_over_in_silence() -> None:
    measured = _measured()
    assert note_on_misses(measured) == []
    measured.cached_misses = 3
    assert "3 sequences had to be computed" in note_on_misses(measured)[0]
    measured.litellm_misses = 5
    assert "LiteLLM's figures are too low: 5" in note_on_misses(measured)[1]


def test_positions_are_rows_and_a_load_lasts_until_the_last_client_is_done() -> None:
    assert Load(seconds=2.0, positions=511 * 64).positions_per_second == 511 * 32


def test_cpu_seconds_are_those_of_all_threads_of_a_process() -> None:
    def work() -> None:
        ended = time.thread_time() + 0.15
        while time.thread_time() < ended:
            pass

    before, before_exactly = cpu_seconds(os.getpid()), time.process_time()
    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    exactly = time.process_time() - before_exactly
    assert exactly >= 0.3
    assert cpu_seconds(os.getpid()) - before == pytest.approx(exactly, abs=0.03)


def test_vllm_computes_in_what_the_processor_is_fast_in() -> None:
    assert fast_dtype("fpu avx2 fma") == "float32"
    assert fast_dtype("fpu avx2 avx512f avx512_bf16") == "bfloat16"


def test_every_sequence_is_dealt_to_one_client_and_asked_for_once() -> None:
    sequences = [[n, n + 1] for n in range(13)]
    shares = dealt(sequences, 4)
    assert len(shares) == 4
    asked = [ids for share in shares for request in grouped(share, 2) for ids in request]
    assert sorted(asked) == sequences


def test_sequences_are_different_real_text_of_the_asked_length() -> None:
    sequences = held_out_sequences(16, 512, _MODEL)
    assert {len(ids) for ids in sequences} == {512}
    assert len({tuple(ids) for ids in sequences}) == 16
    with pytest.raises(ValueError, match="--sequences 1000000"):
        held_out_sequences(1_000_000, 512, _MODEL)


def test_a_request_scores_whole_prompts_and_generates_as_little_as_is_allowed() -> None:
    request = completions_request("teacher", [[1, 2], [3, 4]], 20)
    assert request["prompt"] == [[1, 2], [3, 4]]
    assert (request["prompt_logprobs"], request["max_tokens"]) == (20, 1)


def test_a_progress_bar_ends_where_the_loads_end() -> None:
    plan = Plan(repeats=5)
    wire, uncached, shared, orjson, filling, cached = 3, 2 * 5 + 1, 2 * 5, 2, 2, 5 * 5
    assert plan.loads == wire + uncached + shared + orjson + filling + cached


def test_litellm_caches_text_completions_in_the_redis_that_was_started() -> None:
    settings = litellm_config("http://127.0.0.1:1", 6400, {"a": "hosted_vllm/teacher"})
    cache = settings["litellm_settings"]["cache_params"]
    assert (cache["type"], cache["port"]) == ("redis", 6400)
    assert "atext_completion" in cache["supported_call_types"]
    assert settings["model_list"][0]["litellm_params"]["api_base"] == "http://127.0.0.1:1/v1"


def test_the_baseline_is_the_way_that_scores_from_its_cache_where_there_is_one() -> None:
    loses_rows = ProxyFinding("a", "token ids", 200, cached=True)
    text = ProxyFinding("b", "text", 200, keeps_rows=True, cached=True, cached_keeps_rows=True)
    scores = ProxyFinding("c", "token ids", 200, keeps_rows=True, cached=True, cached_keeps_rows=True)
    assert best_way([loses_rows, text, scores]) is scores
    assert best_way([ProxyFinding("d", "token ids", 500), text, loses_rows]) is None


def test_agreement_sees_rows_of_other_tokens() -> None:
    ids = np.arange(12, dtype=np.uint32).reshape(3, 4)
    rows = SparseRows(
        first_position=1,
        ids=ids,
        logprobs=np.full((3, 4), -2, np.float32),
        counts=np.full(3, 4, np.uint16),
        realised_logprobs=np.array([-1.0, -2.0, -3.0], np.float32),
        realised_ranks=np.ones(3, np.uint32),
        tail_mass=np.zeros(3, np.float32),
    )
    assert agreement([rows], [rows])["same_most_probable_id"] == 1.0
    other = SparseRows(1, ids[::-1], rows.logprobs, rows.counts, rows.realised_logprobs - 1, *_last(rows))
    seen = agreement([rows], [other])
    assert seen["same_most_probable_id"] == pytest.approx(1 / 3)
    assert seen["realised_logprob_largest_difference"] == 1.0


def _last(rows: SparseRows) -> tuple[np.ndarray, np.ndarray]:
    return rows.realised_ranks, rows.tail_mass


@pytest.mark.slow
def test_a_client_that_gets_no_answer_ends_the_measurement_with_its_reason() -> None:
    nobody = CompletionsServer(f"http://127.0.0.1:{free_port()}", "teacher", 300, 20)
    with Clients(1) as clients, pytest.raises(ClientError, match="ConnectError"):
        clients.run([ScoringJob(nobody, [[[1, 2]]])])
