"""A student drafts for the teacher that vLLM serves; its ``speculative_config`` names ``StudentDrafter``."""

from latentforge.vllm.student_drafter import StudentDrafter

__all__ = ["StudentDrafter"]
