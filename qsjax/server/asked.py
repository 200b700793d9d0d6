"""What a client asks for: a bounded body, as JSON or as a form, becomes a `VideoRequest`."""

import asyncio
import re
import typing
from collections.abc import AsyncGenerator
from dataclasses import dataclass, fields
from typing import Any, Literal

from python_multipart.exceptions import FormParserError
from starlette.formparsers import FormParser, MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from qsjax.config import from_mapping
from qsjax.errors import CheckpointError, InputError, QsjaxError
from qsjax.jobs import VideoRequest
from qsjax.untrusted import parse_object, shown

LARGEST = 1 << 20
"""Bytes of a body; the longest prompt is a sixteenth of it."""
SLOWEST = 10.0
"""Seconds that a body may take."""
_FIELDS, _DIGITS = 64, 20
_SIZE = re.compile(r"([1-9]\d{0,5})x([1-9]\d{0,5})")
_SECONDS = re.compile(r"[1-9]\d{0,4}")
_OTHERS = (
    *("input_reference", "image_reference", "video_reference", "audio_reference", "control_reference"),
    *("control_type", "guidance_scale_2", "boundary_ratio", "generate_sound", "sound_duration", "lora"),
    *("enable_frame_interpolation", "frame_interpolation_exp", "frame_interpolation_scale"),
    *("frame_interpolation_model_path", "extra_params", "video_params"),
)  # fmt: skip
"""Fields of other servers, for models that do what HunyuanVideo does not."""
NAMES = {
    "num_frames": "frames",
    "num_inference_steps": "steps",
    "guidance_scale": "guidance",
    "true_cfg_scale": "true_cfg",
    "flow_shift": "shift",
}
"""Field -> name of the setting, where they differ."""


class BodyError(QsjaxError):
    """A body that is not read to its end.

    Args:
        message: one sentence.
        status: of the answer.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, kw_only=True)
class CreateVideo:
    """The body of `POST /v1/videos`. What is None is the checkpoint's.

    Attributes:
        prompt: what the video shows.
        model: name of the served model.
        size: WIDTHxHEIGHT, in place of width and height.
        seconds: length, in place of num_frames: the nearest number of frames that the model makes.
        width, height: pixels.
        num_frames: frames, 4k + 1.
        fps: frames per second.
        num_inference_steps: steps.
        guidance_scale: scale given to the guidance embedder.
        true_cfg_scale: scale of classifier-free guidance; 1 is off.
        flow_shift: shift of the noise schedule.
        negative_prompt: what true guidance moves away from.
        seed: of the noise; None draws one.
        recipe: sampling recipe, by the name of a preset.
        user: whatever the client likes; not looked at.
    """

    prompt: str
    model: str | None = None
    size: str | None = None
    seconds: str | None = None
    width: int | None = None
    height: int | None = None
    num_frames: int | None = None
    fps: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    true_cfg_scale: float | None = None
    flow_shift: float | None = None
    negative_prompt: str | None = None
    seed: int | None = None
    recipe: str | None = None
    user: str | None = None

    def request(self, *, fps: int, temporal: int) -> VideoRequest:
        """The same in the words of the rest of qsjax.

        Args:
            fps: of the checkpoint, where none is asked for.
            temporal: frames a latent frame, after the first.

        Raises:
            InputError: two fields that say the same, or what no video can have.
        """
        width, height, frames = self.width, self.height, self.num_frames
        if self.size is not None:
            if width is not None or height is not None:
                raise InputError("size and width or height say the same; give one of them")
            if (found := _SIZE.fullmatch(self.size)) is None:
                raise InputError(f"size {shown(self.size)}: give WIDTHxHEIGHT, as 832x480")
            width, height = map(int, found.groups())
        if self.seconds is not None:
            if frames is not None:
                raise InputError("seconds and num_frames say the same; give one of them")
            if not _SECONDS.fullmatch(self.seconds):
                raise InputError(f"seconds {shown(self.seconds)}: give a whole number, as 4")
            exact = int(self.seconds) * (self.fps or fps)
            frames = temporal * max(1, round((exact - 1) / temporal)) + 1
        return VideoRequest(
            prompt=self.prompt,
            seed=self.seed,
            negative_prompt=self.negative_prompt,
            frames=frames,
            height=height,
            width=width,
            steps=self.num_inference_steps,
            shift=self.flow_shift,
            guidance=self.guidance_scale,
            true_cfg=self.true_cfg_scale,
            fps=self.fps,
        )


async def read_create(request: Request) -> CreateVideo:
    """Read a body: JSON, or a form as curl's `-F` and OpenAI's client send it.

    Raises:
        BodyError: it is too large or too slow, or of another kind.
        InputError: a field that is unknown, not served, missing, or of the wrong type.
    """
    body = await _body(request)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        try:
            values = parse_object(body, _BODY)
        except CheckpointError as error:
            raise InputError(f"{str(error).rpartition(';')[0]}; correct it") from error
    elif kind in ("multipart/form-data", "application/x-www-form-urlencoded"):
        values = _typed(await _form(request, body, kind))
    else:
        raise BodyError("the body is neither JSON nor a form; say which in Content-Type", 415)
    for name in _OTHERS:
        if values.pop(name, None) not in (None, "", False):
            raise InputError(f"{name}: is not served here, videos are made of text alone; leave it out")  # fmt: skip
    given = {name: value for name, value in values.items() if value is not None}
    return from_mapping(CreateVideo, given, source=_BODY)


_BODY = "the body"


async def _body(request: Request) -> bytes:
    """All of it, if it is not too large and comes in time."""
    announced = request.headers.get("content-length", "0")
    if not announced.isdecimal() or len(announced) > _DIGITS or int(announced) > LARGEST:
        raise BodyError(f"the body has more than {LARGEST} bytes; send less", 413)
    content = bytearray()
    try:
        async with asyncio.timeout(SLOWEST):
            async for part in request.stream():
                content += part
                if len(content) > LARGEST:
                    raise BodyError(f"the body has more than {LARGEST} bytes; send less", 413)
    except TimeoutError as error:
        raise BodyError(f"the body took more than {SLOWEST:g} seconds; send it faster", 408) from error  # fmt: skip
    except ClientDisconnect as error:
        raise BodyError("the client has left", 400) from error
    return bytes(content)


async def _form(request: Request, body: bytes, kind: str) -> dict[str, str]:
    """Fields of a form; each is there once, and is no file."""

    async def stream() -> AsyncGenerator[bytes, None]:
        yield body
        yield b""

    try:
        if kind == "multipart/form-data":
            parser = MultiPartParser(request.headers, stream(), max_files=0, max_fields=_FIELDS, max_part_size=LARGEST)  # fmt: skip
        else:
            parser = FormParser(request.headers, stream())
        items = (await parser.parse()).multi_items()
    except (MultiPartException, FormParserError, KeyError, ValueError) as error:
        text = getattr(error, "message", None) or str(error)
        raise InputError(f"the form is not usable ({shown(text, 200)}); no file is taken, correct it") from error  # fmt: skip
    values: dict[str, str] = {}
    for name, value in items:
        if name in values or len(values) == _FIELDS or not isinstance(value, str):
            raise InputError(f"the form has {shown(name)} twice, or too many fields; correct it")
        values[name] = value
    return values


def _typed(form: dict[str, str]) -> dict[str, Any]:
    """The texts of a form as the numbers that they stand for; an empty one is none."""
    hints = typing.get_type_hints(CreateVideo)
    numbers: dict[str, Literal["int", "float"]] = {}
    for field in fields(CreateVideo):
        if int in typing.get_args(hints[field.name]):
            numbers[field.name] = "int"
        elif float in typing.get_args(hints[field.name]):
            numbers[field.name] = "float"
    values: dict[str, Any] = {}
    for name, text in form.items():
        kind = numbers.get(name)
        if kind is None:
            values[name] = text
        elif text:
            pattern = r"-?\d{1,20}" if kind == "int" else r"-?\d{1,20}(\.\d{1,20})?(e-?\d{1,2})?"
            if not re.fullmatch(pattern, text, re.ASCII):
                what = "a whole number" if kind == "int" else "a number"
                raise InputError(f"{name} is {shown(text, 40)}; give {what}")
            values[name] = int(text) if kind == "int" else float(text)
    return values
