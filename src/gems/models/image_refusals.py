"""How servers say that a model reads no images at all, apart from what they say of a single image."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["says_no_images"]

_NOT_OF_ALL: Final = (
    r"(?!\W{0,2}(?:of|larger|bigger|smaller|with|together|when|while|if|unless|in|above|over|from|urls?|formats?|types?"
    r"|sizes?|detail|dimensions?|that (?:are|exceed|have))\b)"
)
"""What follows would tell of some images, or of images beside something else, such as a schema for the answer."""
_IMAGES: Final = (
    r"(?:images|image[_ ](?:url|inputs?|content|parts?|blocks?|modalit(?:y|ies)|understanding|data|attachments?)"
    r"(?: (?:inputs?|content|parts?|blocks?|modality))?|vision|multi-?modal(?:ity)?(?: (?:inputs?|content|data))?)"
    rf"\b[`'\"]?{_NOT_OF_ALL}"
)
"""Images as what a model can be asked about, not as files."""
_SUPPORTED: Final = r"(?:supported|enabled|available|accepted)"
_NO_IMAGES: Final = re.compile(
    # xAI, llama.cpp, Mistral, Gemma: "image input is not supported"; OpenAI: "only supported by certain models"
    rf"{_IMAGES}(?: (?:is|are))?(?:n't| (?:currently )?not(?: yet| currently)?) {_SUPPORTED}\b{_NOT_OF_ALL}"
    rf"|{_IMAGES}(?: (?:is|are))? (?:unsupported\b{_NOT_OF_ALL}|only {_SUPPORTED} (?:by|for|on) [\w ]{{0,24}}models)"
    # Anthropic, Bedrock, Ollama, LM Studio
    rf"|(?:not|n't|cannot) (?:currently |yet )?(?:support|accept|see|understand) (?:any |the |an )?{_IMAGES}"
    r"|(?:has no|have no|not have|lacks) (?:any )?(?:vision|image (?:input|support|understanding)|multi-?modal)"
    r"|missing data required for image|mmproj"
    # OpenRouter; vLLM
    rf"|endpoints? (?:\w+ )?that supports? {_IMAGES}|not (?:a )?(?:multi-?modal|vision[- ](?:capable|language|model))"
    r"|at most 0 image"
    # DeepSeek and others that read a message's parts strictly; Groq, whose messages are a text
    r"|unknown variant [`'\"]?(?:input_)?image"
    r"|(?:unsupported|invalid|unknown|unrecognized|unexpected) (?:message )?(?:content[ _])?"
    r"(?:part|block|item|modality|type)(?:[ _]type)?\W{1,4}(?:image_url|input_image|image)\b(?![/\w.:-])"
    r"|content['\"`]?\s?:?\s?(?:value |input )?(?:must|should) be (?:a )?(?:valid )?string"
    r"|only (?:supports?|accepts?|takes?) text (?:inputs?|content|messages?|prompts?)\b(?! and)|\btext[- ]only model"
    r"|不支持(?:输入)?(?:图片|图像|视觉|多模态)(?!的?(?:格式|尺寸|大小|类型))",
    re.IGNORECASE,
)
_OF_SOME: Final = re.compile(
    r"\b(?:animated|multiple|several|many|more|two|\d+|such|these|those|this|your|large|remote|external|transparent"
    r"|\w+ed|\w+-encoded|webp|gif|svg|avif|hei[cf]|tiff?|bmp|png|jpe?g)[\s-]+\Z",
    re.IGNORECASE,
)
"""Words before "images" that make them some images."""
_QUOTED: Final = re.compile(
    r"(?P<own>\b(?:message|msg|error|detail)[\"']?\s*:\s*[\"'])"
    r"|(?<!\w)(?P<mark>[\"'`])(?:(?!(?P=mark))\S)*\s(?:(?!(?P=mark)).)*(?P=mark)(?!\w)|“[^”]* [^”]*”",
    re.IGNORECASE,
)
"""Several words in quotation marks, such as the user's, which may be about images; not a server's in JSON."""


def says_no_images(text: str) -> bool:
    """Whether a server's words say that a model reads no images, whichever image it is and however it is sent."""
    own_words = _QUOTED.sub(lambda match: match["own"] or "", text)
    return any(not _OF_SOME.search(own_words[: match.start()]) for match in _NO_IMAGES.finditer(own_words))
