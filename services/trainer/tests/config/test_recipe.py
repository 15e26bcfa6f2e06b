from pathlib import Path

import pytest

from latentforge.trainer.config.recipe import Recipe, load_recipe, parse_override
from latentforge.trainer.config.sections import Section
from latentforge.trainer.config.settings import TrainerSettings
from latentforge.trainer.errors import RecipeError

FOLDER = TrainerSettings().recipes_dir


@pytest.mark.parametrize("name", ["demo", "smoke", "gb10-single", "gb10-dual"])
def test_the_shipped_recipes_load(name: str) -> None:
    recipe = load_recipe(name, FOLDER)
    assert recipe.name == name
    assert recipe.chunk_size == 8
    assert (
        recipe.student_config(1, 0, recipe.autoencoder_config(4096, 1)).max_chunks == recipe.data.sequence_length // 8
    )


def test_a_recipe_that_starts_from_a_model_names_it_where_it_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match=r"student\.init_from=models/cache/smollm2: .*; make smollm2 makes it"):
        load_recipe("smollm2", FOLDER)
    recipe = load_recipe("smollm2", FOLDER, {"student.init_from": ""})
    assert recipe.chunk_size == 4
    assert recipe.student_config(16, 0, recipe.autoencoder_config(49_152, 16)).max_chunks == 128


def test_the_drafters_recipe_is_cheap_to_draft_with_and_learns_what_the_teacher_writes() -> None:
    recipe = load_recipe("drafter", FOLDER, {"student.init_from": ""})
    assert (recipe.teacher.targets, recipe.teacher.generate.text_prompts) == ("generate", "continued")
    assert recipe.teacher.generate.greedy_share > 0.5
    config = recipe.student_config(16, 0, recipe.autoencoder_config(49_152, 16))
    assert (config.num_layers, config.chunk_decoder.kind, config.logit_features.kind) == (0, "recurrent", "none")
    # What a drafted token reads: the GRU, the block and the output table, of SmolLM2's 134M.
    width, rank = config.chunk_decoder.width, config.chunk_decoder.rank
    read = (
        3 * width * (width + config.embed_size)
        + 6 * width**2
        + rank * (width + (config.chunk_decoder.frequent_ids or 0))
    )
    assert read < 134e6 / 30
    # Tables in bfloat16 within 25 MB.
    assert 2 * (read + 49_152 * (config.embed_size + 1 + 8)) < 25e6


def test_overrides_reach_their_field() -> None:
    recipe = load_recipe("demo", FOLDER, {"autoencoder.model.latent_size": 1024, "student.optim.steps": None})
    assert recipe.autoencoder_config(4096, 1).latent_size == 1024
    assert recipe.student.optim.steps == load_recipe("demo", FOLDER).student.optim.steps


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"student.optim.lr": -1}, r"student\.optim\.lr is -1: .*greater than 0"),
        ({"student.optim.learning_rate": 1}, r"student\.optim\.learning_rate is not a known field"),
        ({"chunk_size": 7}, r"sequence_length=2048 is not a multiple .* of chunk_size=7"),
        ({"autoencoder.model.latent_size": 0}, r"autoencoder\.model\.latent_size is 0: .*greater than or equal to 1"),
        ({"student.model.num_kv_heads": 3}, "num_heads=4 is not a multiple of num_kv_heads=3"),
        ({"student.model.head": "magic"}, r"student\.model\.head is 'magic': .*'deterministic' or 'energy'"),
        ({"student.model.vocab_size": 9}, r"student\.model\.vocab_size is 9: it follows from"),
        ({"student.weights.energy": 1.0}, r"energy=1\.0 needs student\.model\.head='energy'"),
        ({"student.weights": {"ce": 0, "kd": 0, "mse": 0}}, "all 0"),
        (
            {"student.objective": "chunk"},
            r"student\.objective is 'chunk'; choose one of regressed-latent, energy",
        ),
        ({"teacher.targets": "text"}, r"kd=2\.0 with teacher\.targets='text'.*objective chunk-ce"),
        (
            {"teacher.targets": "text", "student.weights.kd": 0, "student.weights.tv": 1},
            r"weights\.tv=1\.0 with teacher\.targets='text'",
        ),
        ({"student.model.chunk_decoder.kind": "none"}, r"objective='chunk-kd-heavy' with .*kind='none'"),
        (
            {"student.model.logit_features.kind": "none", "student.model.chunk_decoder.kind": "none"}
            | {"student.objective": "regressed-latent"},
            r"logit_features\.kind='none' with chunk_decoder\.kind='none'.*take a decoder",
        ),
        (
            {"student.model.num_layers": 0, "student.activation_checkpointing": True},
            r"activation_checkpointing=true with student\.model\.num_layers=0.*set it to false",
        ),
        ({"name.x": 1}, r"name\.x: name is a value"),
        (
            {"student.token_level.output_rank": 0},
            r"student\.token_level\.output_rank is 0: .*greater than or",
        ),
        ({"student.model.output_rank": 8}, r"student\.model\.output_rank is not a known field"),
    ],
)
def test_wrong_values_are_named(overrides: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe("demo", FOLDER, overrides)


def test_a_token_level_student_has_the_students_backbone_and_as_many_tokens() -> None:
    recipe = load_recipe("demo", FOLDER, {"student.model.num_layers": 2})
    config = recipe.token_level_config(4096, 1, 0)
    student = recipe.student_config(1, 0, recipe.autoencoder_config(4096, 1))
    for name in ("num_layers", "hidden_size", "intermediate_size", "num_heads", "rope_theta"):
        assert getattr(config, name) == getattr(student, name), name
    assert config.max_tokens == student.max_chunks * student.chunk_size == 2048
    assert (config.embed_size, config.output_rank) == (None, None)


def test_split_layers_cannot_be_sharded() -> None:
    split = {
        "student.model.positions": "tokens",
        "student.model.chunk_decoder.kind": "split",
        "student.model.chunk_decoder.num_layers": 1,
        "student.model.logit_features.kind": "none",
    }
    recipe = load_recipe("demo", FOLDER, split)
    assert recipe.student_config(1, 0, recipe.autoencoder_config(4096, 1)).chunk_decoder.kind == "split"
    with pytest.raises(RecipeError, match=r"kind is 'split' and distributed is 'fsdp'.*set distributed to ddp"):
        load_recipe("demo", FOLDER, split | {"distributed": "fsdp"})


def test_a_token_level_student_may_have_narrow_tables() -> None:
    tables = {"student.token_level.embed_size": 64, "student.token_level.output_rank": 48}
    recipe = load_recipe("demo", FOLDER, tables)
    config = recipe.token_level_config(4096, 1, 0)
    assert (config.embed_size, config.output_rank) == (64, 48)


def test_a_token_level_student_without_layers_is_refused() -> None:
    recipe = load_recipe("demo", FOLDER, {"student.model.num_layers": 0})
    with pytest.raises(RecipeError, match=r"student\.model\.num_layers is 0: .*greater than or equal to 1"):
        recipe.token_level_config(4096, 1, 0)


def test_an_unknown_recipe_says_which_there_are(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"no recipe 'dmeo' .* known: demo, drafter, gb10-dual, gb10-single, smoke"):
        load_recipe("dmeo", FOLDER)
    with pytest.raises(RecipeError, match="set RECIPES_DIR"):
        load_recipe("demo", tmp_path)


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("name = ")
    with pytest.raises(RecipeError, match=r"mine\.toml: "):
        load_recipe(str(path), FOLDER)


def test_overrides_are_read_as_toml_or_text() -> None:
    assert parse_override("a.b=3") == ("a.b", 3)
    assert parse_override("a=0.5") == ("a", 0.5)
    assert parse_override("student.model.head=energy") == ("student.model.head", "energy")
    with pytest.raises(RecipeError, match="dotted name"):
        parse_override("steps")


def test_every_field_says_what_it_is() -> None:
    sections: list[type[Section]] = [Recipe, *Section.__subclasses__()]
    silent = [f"{s.__name__}.{name}" for s in sections for name, f in s.model_fields.items() if not f.description]
    assert silent == []


def test_epochs_of_the_autoencoder_become_steps() -> None:
    recipe = load_recipe("smoke", FOLDER, {"autoencoder.optim.batch_size": 10})
    # 100 chunks of 8 tokens and a rest, 10 a step.
    assert recipe.with_autoencoder_epochs(1, 803).autoencoder.optim.steps == 10
    longer = recipe.with_autoencoder_epochs(0.25, 803)
    assert longer.autoencoder.optim.steps == 3
    changed = longer.model_dump()
    changed["autoencoder"]["optim"]["steps"] = recipe.autoencoder.optim.steps
    assert changed == recipe.model_dump()


def test_more_parts_than_the_batch_has_sequences_are_refused(recipe_file: Path) -> None:
    asked = {"student.optim.gradient_accumulation_steps": 3}
    with pytest.raises(RecipeError, match=r"gradient_accumulation_steps=3 is more than batch_size=2"):
        load_recipe(str(recipe_file), Path(), asked)
