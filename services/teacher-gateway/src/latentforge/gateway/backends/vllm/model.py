"""What is said of a model that vLLM runs, and how it is asked to sample."""

from latentforge.gateway.backends.base import BackendError, FailureKind, TeacherDescription
from latentforge.gateway.backends.model_folder import ModelFiles
from latentforge.gateway.settings import GatewaySettings

# Said with each request, since a server takes others from the model's generation_config.json.
SAMPLING = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
GREEDY = {**SAMPLING, "temperature": 0.0, "top_p": 1.0}


def describe(
    settings: GatewaySettings,
    files: ModelFiles,
    *,
    model: str,
    revision: str,
    engine: str,
    compute_dtype: str,
    max_model_len: int,
) -> TeacherDescription:
    """
    Raises:
        BackendError: MAX_SEQUENCE_LENGTH is more than the server takes.
    """
    # vLLM cannot score without generating a token, which counts.
    longest = max_model_len - 1
    asked = settings.max_sequence_length
    if asked is not None and asked > longest:
        raise BackendError(
            f"MAX_SEQUENCE_LENGTH={asked} is more than {longest}, one less than vLLM's --max-model-len",
            FailureKind.MISCONFIGURED,
        )
    return TeacherDescription(
        backend=settings.teacher_backend,
        model=model,
        revision=revision,
        quantization=settings.vllm_quantization,
        engine=engine,
        compute_dtype=compute_dtype,
        can_score=True,
        can_generate=True,
        max_top_k=min(settings.max_top_k, files.config.vocab_size),
        max_sequence_length=asked or longest,
        vocab_size=files.config.vocab_size,
        tokenizer_fingerprint=files.tokenizer.fingerprint,
    )
