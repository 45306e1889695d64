// What the light on everything does: relit of neuralcodec/light.py, for RGBA.
const UNITS = 64, WHITE = 340;

/** Grey value of the pixel that begins there: luma of neuralcodec/face.py. */
export const luma = (picture, i) => (77 * picture[i] + 150 * picture[i + 1] + 29 * picture[i + 2]) >> 8;

/** The picture in light that is so many units brighter, in place. */
export function relight(picture, light) {
  if (!light) return picture;
  const odds = Math.exp(light / UNITS);
  const factors = Float32Array.from({ length: 256 }, (_, level) => WHITE * odds / (WHITE + (odds - 1) * level));
  for (let i = 0; i < picture.length; i += 4) {
    const factor = factors[luma(picture, i)];
    for (let j = i; j < i + 3; j++) picture[j] = Math.floor(Math.min(255, factor * picture[j] + 0.5));
  }
  return picture;
}
