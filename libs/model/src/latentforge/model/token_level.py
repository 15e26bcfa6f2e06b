"""The token-level baseline: a student that writes one token a step, with the backbone of a latent student."""

import torch
from torch import Tensor, nn

from latentforge.model.backbone import build_backbone, run_backbone
from latentforge.model.config import BackboneConfig, StudentConfig, TokenLevelConfig
from latentforge.model.induction import build_induction
from latentforge.model.layers import TABLE_SCALE, log_frequencies, output_scale, output_table
from latentforge.model.logit_passes import IN_PLACE, LogitPasses
from latentforge.model.output_loss import OutputLayer


def token_level_config(config: StudentConfig) -> TokenLevelConfig:
    """A token-level student with a latent student's backbone and room for as many tokens."""
    sizes = config.model_dump(include=set(BackboneConfig.model_fields))
    return TokenLevelConfig(**sizes, max_tokens=config.max_chunks * config.chunk_size)


class TokenLevelModel(nn.Module):
    """A decoder over tokens whose tables and bias start as a latent student's do, so that both learn alike.

    Step i reads token i-1; step 0 reads a learned start embedding. Its tables may be as narrow as a latent student's:
    with an ``output_rank`` r logits are ``output_table · output_map · hidden``, a table of rank r that costs V·r
    products a token in place of V·h, and with an ``embed_size`` its embeddings are factored likewise (Lan et al.,
    "ALBERT", arXiv 1909.11942).
    """

    chunk_size = 1
    #: how the losses of its tokens go over logits
    logit_passes: LogitPasses = IN_PLACE

    def __init__(self, config: TokenLevelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.embed_width)
        nn.init.normal_(self.embedding.weight, std=1 / TABLE_SCALE)
        self.input_map = _input_map(config)
        self.start = nn.Parameter(torch.randn(config.hidden_size))
        self.backbone = build_backbone(config, config.max_tokens)
        self.output_map = nn.Linear(config.hidden_size, config.output_rank, bias=False) if config.output_rank else None
        self.output_table = output_table(config.vocab_size, config.output_width)
        self.induction = build_induction(config.embed_width, config.output_width, config.induction)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

    @property
    def eos_id(self) -> int:
        return self.config.eos_id

    @property
    def device(self) -> torch.device:
        return self.start.device

    @property
    def max_tokens(self) -> int:
        """The longest text that it reads and writes."""
        return self.config.max_tokens

    @torch.no_grad()
    def set_token_counts(self, counts: Tensor) -> None:
        """Starts the bias of the logits at the log frequencies of the tokens in the training data, int64 [V]."""
        self.bias.copy_(log_frequencies(counts))

    def embed(self, tokens: Tensor) -> Tensor:
        """Embeds ids, int64 [...], float [..., e]."""
        embedded: Tensor = self.embedding(tokens) * TABLE_SCALE
        return embedded

    def inputs_of(self, embedded: Tensor) -> Tensor:
        """The backbone's inputs, float [..., h], of embedded tokens [..., e]."""
        return embedded if self.input_map is None else self.input_map(embedded)

    def start_inputs(self, batch_size: int) -> Tensor:
        """The input of step 0, float [b, 1, h]."""
        return self.start.expand(batch_size, 1, -1)

    def run_backbone(self, inputs: Tensor) -> Tensor:
        """Runs the transformer over inputs [b, L, h]; gives [b, L, h]."""
        return run_backbone(self.backbone, inputs)

    def output(self, tokens: Tensor) -> OutputLayer:
        """The output layer and what it reads to predict each of tokens [b, L], teacher-forced."""
        embedded = self.embed(tokens)
        # Shifted by one token: position i reads token i - 1, and the causal mask hides all later ones from it.
        inputs = torch.cat([self.start_inputs(tokens.shape[0]), self.inputs_of(embedded[:, :-1])], 1)
        hidden = self.run_backbone(inputs)
        layer = self.output_of(hidden)
        return layer if self.induction is None else layer._replace(induction=self.induction(tokens, embedded))

    def output_of(self, hidden: Tensor) -> OutputLayer:
        """The output layer over hidden states [..., h], without induction heads."""
        read = hidden if self.output_map is None else self.output_map(hidden)
        inputs = read * output_scale(self.config.output_width)
        table = self.output_table.weight
        num_fixed = 0 if table.requires_grad else table.shape[1]
        return OutputLayer(inputs.flatten(0, -2), table, self.bias, num_fixed)

    def logits(self, tokens: Tensor) -> Tensor:
        """Logits [b, L, V]; position i is predicted from tokens < i of tokens [b, L]."""
        return self.output(tokens).logits().view(*tokens.shape, -1)


def _input_map(config: TokenLevelConfig) -> nn.Linear | None:
    """From embeddings to the backbone's inputs, of the same size at the beginning; None where both have one width."""
    if config.embed_size is None:
        return None
    made = nn.Linear(config.embed_size, config.hidden_size)
    nn.init.normal_(made.weight, std=config.embed_size**-0.5)
    nn.init.zeros_(made.bias)
    return made
