"""Request and response types of Parrot's public API.

*Parrot* means the program that the authors of the Parrot paper (Lin et al., OSDI'24) published.
"""

from compat.parrot.answers import (
    ErrorAnswer,
    Nothing,
    ProgramAnswer,
    Registered,
    SemanticCallAnswer,
    Told,
    Value,
    VariableInfo,
    Variables,
)
from compat.parrot.requests import (
    CRITERIA,
    NativeCall,
    Parameter,
    Program,
    ProgramRequest,
    Read,
    Register,
    SamplingConfig,
    SemanticCall,
    Set,
    pieces,
)

__all__ = [
    "CRITERIA",
    "ErrorAnswer",
    "NativeCall",
    "Nothing",
    "Parameter",
    "Program",
    "ProgramAnswer",
    "ProgramRequest",
    "Read",
    "Register",
    "Registered",
    "SamplingConfig",
    "SemanticCall",
    "SemanticCallAnswer",
    "Set",
    "Told",
    "Value",
    "VariableInfo",
    "Variables",
    "pieces",
]
