"""The style of a scanner: brightness, noise, pixel size, sharpness, and the settings that change the contrast."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Scanner:
    """gain, noise_sd: ranges from which those of a study are drawn; noise_sd is that of each of the two channels before
    the gain, the blood of a cine being 400. pixel: pixel size in multiples of what was asked for. blur: width of edges
    in multiples of the standard. lge_inversion: inversion time in multiples of that which nulls healthy muscle."""

    gain: tuple[float, float]
    noise_sd: tuple[float, float]
    pixel: float = 1.0
    blur: float = 1.0
    cine_flip_deg: float = 60.0
    lge_inversion: float = 1.08
    t2w_echo_ms: float = 64.0


STANDARD = Scanner((0.8, 1.4), (4, 12))
# Not measured: plausible differences, as they make models fail on the images of another vendor.
SCANNERS = {
    "siemens": Scanner((0.5, 0.8), (4, 9), pixel=1.0, cine_flip_deg=65, lge_inversion=1.06, t2w_echo_ms=60),
    "philips": Scanner((2.0, 3.5), (5, 11), pixel=0.85, blur=1.3, cine_flip_deg=50, lge_inversion=1.12, t2w_echo_ms=80),
    "ge": Scanner((4.0, 7.0), (8, 15), pixel=0.92, blur=0.8, cine_flip_deg=45, lge_inversion=1.03, t2w_echo_ms=90),
}
