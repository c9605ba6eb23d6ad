"""How the pocket pipeline draws: words in, slots denoised under a flow-matching schedule, pixels out.

Two classes draw so. ``pipeline.PocketPipeline`` is a ``diffusers.DiffusionPipeline``. ``light.PocketPipeline`` makes
the same images from the same weights without diffusers and transformers, whose import takes longer than ten images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from gems.models.pocket.editing import kept_slots
from gems.models.pocket.guide import GUIDE, objection
from gems.models.pocket.scene import NUM_SLOTS, SLOT_DIM
from gems.models.pocket.tokenizer import encode, fault_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["Drawing", "Pictures", "StepCallback"]

StepCallback = Callable[[Any, int, float, dict[str, Any]], dict[str, Any]]
"""Called as ``callback(pipeline, step, timestep, tensors)``; the tensors it returns replace the pipeline's own."""

_STYLES: Final = 2**16
"""Number of drawing styles; each image gets a random one."""


@dataclass
class Pictures:
    """The result: a PIL image for each prompt, or a (NUM_SLOTS, SLOT_DIM) array each with ``output_type="slots"``."""

    images: list[Image.Image] | list[NDArray[np.float32]]


class Drawing:
    """The call of the pocket pipeline. A subclass has its parts."""

    prompting: ClassVar[str] = GUIDE
    """Instructions for chat models that write prompts for this pipeline."""
    objection = staticmethod(objection)
    """Why a prompt cannot be drawn, without loading the weights; see ``gems.models.pocket.guide``."""
    output: ClassVar[type] = Pictures
    """The class of the result."""
    slot_shape: ClassVar[tuple[int, int]] = (NUM_SLOTS, SLOT_DIM)
    """The slots of an image, and the numbers of a slot."""
    _kept_slots = staticmethod(kept_slots)
    """Which slots an edit keeps, and their values; see ``gems.models.pocket.editing``."""
    _callback_tensor_inputs: Final = ["slots"]

    text_encoder: Any
    transformer: Any
    scheduler: Any
    decoder: Any
    _execution_device: Any
    progress_bar: Any
    maybe_free_model_hooks: Any

    @property
    def words(self) -> Tokenizer:
        """The tokenizer."""
        raise NotImplementedError

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str],
        *,
        num_inference_steps: int = 12,
        guidance_scale: float = 1.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        image: Image.Image | None = None,
        keep: Sequence[str] = (),
        fix: Sequence[str] = (),
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("slots",),
        output_type: Literal["pil", "slots"] = "pil",
    ) -> Any:
        """Make one image for each prompt.

        Images are denoised one after another, so that an image depends on its prompt and generator alone, bit for bit,
        whatever else is in the batch.

        Args:
            prompt: One prompt or several, in words of ``captions.WORDS``, at most 127 of them.
            num_inference_steps: Euler steps of the scheduler.
            guidance_scale: Classifier-free guidance (arXiv 2207.12598); 1 turns it off and halves the cost.
            generator: One for all images, used in turn, or one for each prompt. None is torch's global generator.
            image: An image to edit: groups in it that are right stay where they are, the rest is redrawn.
            keep: The questions about ``image`` whose answer is yes.
            fix: The questions about ``image`` whose answer is not yes.
            callback_on_step_end: Called after every step of every image; ``step`` starts at 0 for each image.
            callback_on_step_end_tensor_inputs: Tensors passed to the callback: "slots", (1, NUM_SLOTS, SLOT_DIM).
            output_type: "pil" for images, "slots" for the arrays that the images would be drawn from.

        Returns:
            The images, in a ``Pictures`` or, with diffusers, in a ``PocketPipelineOutput``.

        Raises:
            ValueError: A prompt is empty, too long or has words outside the vocabulary, or another argument is invalid.
        """
        prompts = [prompt] if isinstance(prompt, str) else prompt
        generators = generator if isinstance(generator, list) else [generator] * len(prompts)
        if len(generators) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts need as many generators, not {len(generators)}")
        self._check_arguments(prompts, output_type, callback_on_step_end_tensor_inputs)

        def on_step_end(step: int, timestep: float, slots: Tensor) -> Tensor:
            if callback_on_step_end is None:
                return slots
            tensors = {"slots": slots} if callback_on_step_end_tensor_inputs else {}
            result: Tensor = callback_on_step_end(self, step, timestep, tensors).get("slots", slots)
            return result

        images = []
        for text, rng in zip(prompts, generators, strict=True):
            slots_to_keep = self._slots_to_keep(text, image, keep, fix) if image is not None else None
            slots = self._denoise(text, rng, num_inference_steps, guidance_scale, on_step_end, slots_to_keep)
            style = int(torch.randint(_STYLES, (), generator=rng, device=rng.device if rng else None))
            images.append(slots if output_type == "slots" else self.decoder(slots, style))
        self.maybe_free_model_hooks()
        return self.output(images=images)

    def _check_arguments(self, prompts: Sequence[str], output_type: str, callback_tensors: Sequence[str]) -> None:
        if output_type not in ("pil", "slots"):
            raise ValueError(f"output_type is 'pil' or 'slots', not {output_type!r}")
        unknown = set(callback_tensors) - set(self._callback_tensor_inputs)
        if unknown:
            raise ValueError(f"no tensors {sorted(unknown)} for callbacks, only {self._callback_tensor_inputs}")
        for prompt in prompts:
            if fault := self._fault_of(prompt):
                raise ValueError(fault)

    def _fault_of(self, prompt: str) -> str:
        """Why a prompt cannot be drawn; empty if it can."""
        return fault_of(self.words, prompt)

    def _slots_to_keep(
        self, prompt: str, image: Image.Image, keep: Sequence[str], fix: Sequence[str]
    ) -> tuple[Tensor, Tensor]:
        """What an edit keeps of an image: slots (1, NUM_SLOTS, SLOT_DIM) and the mask of them (1, NUM_SLOTS, 1)."""
        slots, is_kept = self._kept_slots(prompt, image, keep, fix)
        device = self._execution_device
        return torch.from_numpy(slots)[None].to(device), torch.from_numpy(is_kept)[None, :, None].to(device)

    def _denoise(
        self,
        prompt: str,
        generator: torch.Generator | None,
        steps: int,
        guidance_scale: float,
        on_step_end: Callable[[int, float, Tensor], Tensor],
        slots_to_keep: tuple[Tensor, Tensor] | None = None,
    ) -> NDArray[np.float32]:
        """Slots of shape (NUM_SLOTS, SLOT_DIM), rounded so that they are equal on any processor.

        The slots to keep are restored after every step, with as much noise as the others have at that step, so that the
        rest is drawn to fit them (RePaint, arXiv 2201.09865).
        """
        guided = guidance_scale != 1
        text, mask = self._encode([prompt, ""] if guided else [prompt])
        source = generator.device if generator else text.device  # the noise is the same on every device
        shape = (1, *self.slot_shape)
        slots = torch.randn(shape, generator=generator, device=source, dtype=text.dtype).to(text.device)
        noise = slots
        self.scheduler.set_timesteps(steps, device=text.device)
        with self.progress_bar(total=steps) as bar:
            for step, (timestep, level) in enumerate(
                zip(self.scheduler.timesteps, self.scheduler.sigmas, strict=False)
            ):
                count = len(text)
                clean = self.transformer(slots.expand(count, -1, -1), level.to(text).expand(count), text, mask)
                if guided:
                    with_text, without_text = clean.chunk(2)
                    clean = without_text + guidance_scale * (with_text - without_text)
                slots = self.scheduler.step((slots - clean) / level, timestep, slots).prev_sample
                if slots_to_keep is not None:
                    values, mask_to_keep = slots_to_keep
                    remaining_noise = self.scheduler.sigmas[step + 1].to(slots)
                    slots = torch.where(mask_to_keep, (1 - remaining_noise) * values + remaining_noise * noise, slots)
                slots = on_step_end(step, float(timestep), slots)
                bar.update()
        # The last bits differ between processors and thread counts, but images must be equal everywhere.
        rounded: NDArray[np.float32] = slots[0].float().cpu().numpy().round(3)
        return rounded

    def _encode(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """The text encoder's states (batch, tokens, text_width) and the mask of real tokens (batch, tokens)."""
        ids, mask = (torch.tensor(rows, device=self._execution_device) for rows in encode(self.words, prompts))
        return self.text_encoder(input_ids=ids, attention_mask=mask).last_hidden_state, mask
