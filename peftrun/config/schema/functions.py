"""References to functions in Python files of the user: `FILE.py:FUNCTION`."""

import re
from typing import Annotated

from pydantic import Field

FUNCTION_REFERENCE = re.compile(r"^.+\.py:[A-Za-z_]\w*$")
FunctionReference = Annotated[str, Field(pattern=FUNCTION_REFERENCE.pattern)]
