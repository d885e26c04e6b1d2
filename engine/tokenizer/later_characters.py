"""Characters that Unicode gained after version 15.1.

The reference classifies characters by the tables of Unicode 15.1, where these were not yet letters, digits, marks,
punctuation or symbols. The `regex` package follows newer versions, so they are named here. Source: DerivedAge.txt of
the Unicode Character Database (ages 16.0 and later); runs are joined across code points that are still unassigned.
"""

_RANGES = """
    558 58B-58C 5C8-5C9 88F 897 B53-B54 C5C CDC 1ACF-1AF0 1B4E-1B4F 1B7F 1C89-1C8A 208F 209D-209F 20C1-20C4
    2427-2429 2B96 2E60-2E63 31E4-31E5 A7CB-A7CF A7D2 A7D4 A7DA-A7F1 AB6C-AB6D FBC3-FBD2 FD90-FD91 FDC8-FDCE
    105C0-105F3 107BB-107BF 10940-10959 10D40-10D8F 10EC2-10EFC 11380-113E2 116D0-116E3 11B0A-11BF9 11DB0-11DF1
    11F5A 1246F 12475-1247F 12550-12686 13460-143FA 16100-16139 16D40-16D79 16EA0-16ED3 16FF2-16FF6 187F8-187FF
    18CD6-18CFF 18D09-191D2 1B123-1B128 1B168 1CC00-1CEFD 1D127-1D128 1D1EB-1D1FF 1D250-1D281 1D6A6 1DB00-1DB1C
    1DF1F-1DF24 1DF2B-1DFFF 1E5D0-1E6FF 1F1AE 1F6D8-1F6D9 1F777-1F77A 1F7DA-1F7DB 1F7F1-1F7FF 1F8B2-1F8D8
    1FA54-1FA57 1FA89-1FA8F 1FABE 1FAC6-1FACD 1FADC-1FADF 1FAE9-1FAEF 1FAF9-1FAFA 1FBCB-1FBEF 1FBFA 2B73A-2B73F
    2B81E 2CEA2-2CEAD 32000-33479
    3D000-3FC3F
"""


def _character_class() -> str:
    parts = []
    for entry in _RANGES.split():
        first, _, last = entry.partition("-")
        parts.append(f"\\U{int(first, 16):08x}-\\U{int(last or first, 16):08x}")
    return f"[{''.join(parts)}]"


LATER_CHARACTERS = _character_class()
"""A regular expression that matches one of them."""
