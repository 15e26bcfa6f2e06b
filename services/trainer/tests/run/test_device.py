import torch

from latentforge.trainer.config.recipe import load_recipe
from latentforge.trainer.config.settings import TrainerSettings
from latentforge.trainer.run.device import use_tf32


def test_float32_products_are_in_tf32_where_a_recipe_says_so() -> None:
    folder = TrainerSettings().recipes_dir
    exact, fast = load_recipe("smoke", folder), load_recipe("smoke", folder, {"tf32": True})
    before = torch.get_float32_matmul_precision()
    try:
        use_tf32(fast, torch.device("cuda"))
        assert torch.get_float32_matmul_precision() == "high"
        use_tf32(exact, torch.device("cuda"))
        assert torch.get_float32_matmul_precision() == "highest"
        use_tf32(fast, torch.device("cpu"))
        assert torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.set_float32_matmul_precision(before)
