"""Labels that are spelled as those of untreated cells, or of cells whose perturbation nobody knows, usually are."""

from __future__ import annotations

import re
from typing import Final

# Words of untreated cells that may stand with anything in _BESIDE: `DMSO_TF`, `sgNT-1`, `0.1% DMSO`.
_UNTREATED: Final = (
    r"control|ctrl|ctl|cntrl|cntl|negctrl|negcontrol|ntctrl|nt|ntc|non ?target(?:ing|ed)?|no ?target|"
    r"safe ?target(?:ing)?|safe ?harbou?r|neg(?:ative)? ?(?:control|ctrl|ctl)|intergenic|(?:one )?non gene site|"
    r"no ?(?:drug|treatment|stim(?:ulation)?|cytokine|perturbation|site)|unperturbed|untreated|unstimulated|unstim|"
    r"untransduced|vehicle|dmso(?: tf)?|pbs|mock|scrambled?|scr|wild ?type|wt"
)
_BESIDE: Final = r"sg|grna|sgrna|guide|cells?|treated|treatment|human|mouse|only|g|\d+|%"
_CONTROL: Final = re.compile(
    rf"(?:(?:sg|si|sh) ?|(?:human|mouse|\d+|%) )*(?:{_UNTREATED})g?(?: (?:{_UNTREATED}|{_BESIDE})g?)*"
)
# Alone these are untreated cells only where no other label is: in screens of guides they mean that none was found.
_NONE: Final = re.compile(r"none|neg|negative|no ?(?:guide|sgrna|grna)s?")
_UNASSIGNED: Final = re.compile(
    r"|nan|na|n a|null|none|neg|negative|unassigned|not ?assigned|unknown|undetermined|undefined|undetected|unmapped|"
    r"unlabel(?:l)?ed|missing|ambiguous|ambient|multi|multiple(?: .*)?|multiplets?|doublets?|triplets?|collision|"
    r"no ?(?:guides?|sgrnas?|grnas?|calls?|labels?|assignments?|protospacers?|barcodes?)|"
    r"not ?(?:detected|called|available)|low ?quality|fail(?:ed)?|filtered|excluded|to ?remove"
)
# Symbols of genes that the words above would take: NT5E is no non-targeting guide, WT1 no wild type.
_SYMBOL: Final = re.compile(r"(?:WT|SCR|CTL|PBS|CTRL|MOCK|NEG|NTC?[A-Z]|NTC?\d+[A-Z])[A-Z]*\d*[A-Z]*\d*")
_SHORT: Final = re.compile(r"WT|SCR|CTL|PBS|NTC|CTRL|MOCK|NEG")
_BETWEEN: Final = re.compile(r"[+|;,]|__")


def looks_like_control(label: str) -> bool:
    """Whether a label is spelled as those of untreated cells usually are: `NT-1`, `DMSO_TF`, `NegCtrl0+NegCtrl0`."""
    parts = [part.strip() for part in _BETWEEN.split(label.strip())]
    symbols = [part for part in parts if _SYMBOL.fullmatch(part) and not _SHORT.fullmatch(part)]
    if symbols or label.strip()[-1:] in ("_", "-", "."):
        return False
    return all(_CONTROL.fullmatch(_words(part)) for part in parts)


def may_be_control(label: str) -> bool:
    """Whether a label such as `None` or `Negative` may be that of untreated cells, where no other label is."""
    return looks_like_control(label) or bool(_NONE.fullmatch(_words(label)))


def looks_unassigned(label: str) -> bool:
    """Whether a label says that nobody knows what was done to a cell: `nan`, `unassigned`, `Negative`, `doublet`."""
    return bool(_UNASSIGNED.fullmatch(_words(label)))


def _words(label: str) -> str:
    """The label in lower case, words and numbers apart: `NegCtrl0` is `negctrl 0`, `INTERGENIC12_3` `intergenic 12 3`."""
    text = re.sub(r"(?<=[A-Za-z])(?=\d)|(?<=\d)(?=[A-Za-z])", " ", label.strip())
    return re.sub(r"[^a-z0-9%]+", " ", text.lower().replace("%", " % ")).strip()
