"""What params.yaml says about a model for its model card: licence, contact, intended use."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints

from onward.stages.config.values import Section

Text = Annotated[str, StringConstraints(strip_whitespace=True, max_length=2000)]
Word = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=100)]


class Card(Section):
    """The part of a model card that cannot be measured. All keys are optional.

    Attributes:
        license: The licence's SPDX identifier in lower case, such as `apache-2.0`, as Hugging Face writes it.
        contact: The address, channel or team for questions.
        description: What the model does, in a sentence.
        intended_use: What the model is for.
        preprocessing: How raw data becomes the model's inputs.
        limitations: What the model should not be used for.
        language: Codes of the languages that the model processes, such as `en`.
        pipeline_tag: The task in Hugging Face's terms, such as `image-classification`.
        datasets: Names of the data that the model was trained on.
        base_model: The model that it was made from, such as `microsoft/resnet-18`.
        tags: More words to search for.
    """

    license: Text = ""
    contact: Text = ""
    description: Text = ""
    intended_use: Text = ""
    preprocessing: Text = ""
    limitations: Text = ""
    language: Annotated[list[Word], Field(max_length=50)] = []
    pipeline_tag: Text = ""
    datasets: Annotated[list[Word], Field(max_length=50)] = []
    base_model: Text = ""
    tags: Annotated[list[Word], Field(max_length=50)] = []
