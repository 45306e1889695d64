// The networks of a pack with onnxruntime-web: what neuralcodec/inference.py does. Knows no packets and no browser.
import { posed } from "./bitstream.mjs";
import { findFace, planes } from "./face.mjs";

const LOOKS = 3, SETTLED = 0.005; // of the motion network at a reference, as in Python
const SURE = 0.5; // of its confidence: below it there is no face
const SLOW = 125, LENT = 500; // ms: a picture that took longer to draw lends its features to the next ones for so long
const NEAR = 0.15; // box of a face that is still the same one, half a second later
const FOLLOWED = 0.05; // box of a face from one picture to the next: within it one look is enough

export class Networks {
  /** ort: onnxruntime-web; load: name of a graph to its bytes or a promise of them; provider of onnxruntime-web for the
   *  large networks. Keypoints are found as Python finds them, by WebAssembly. */
  static async open(ort, load, size, provider = "wasm") {
    const networks = new Networks();
    [networks.ort, networks.size] = [ort, size];
    for (const [name, by] of [["detector", "wasm"], ["motion", "wasm"], ["reference", provider], ["render", provider]]) {
      networks[name] = await ort.InferenceSession.create(await load(name), { executionProviders: [by] });
    }
    return networks;
  }

  /** What they hold of a GPU's memory is free again; they are of no use any more. */
  async release() { for (const name of ["detector", "motion", "reference", "render"]) await this[name]?.release?.(); }

  tensor(data, ...shape) { return new this.ort.Tensor("float32", data, shape); }

  /** The face of a picture of which nothing is known yet: the motion network's outputs as typed arrays, whether it is
   *  sure that there is one, the box, and the picture as the networks take it. */
  async estimate(pixels) {
    const image = this.image(pixels);
    let box = await findFace(pixels, this.size, async (picture) => {
      const { heatmap, box } = await this.detector.run({ image: this.tensor(picture, 1, 3, 160, 160) });
      return { heatmap: heatmap.data, box: box.data, cells: heatmap.dims[3] };
    });
    for (let look = 1; ; look++) {
      const face = await this.look(image, box), moved = apart(face.box, box);
      if (look === LOOKS || (look > 1 && moved <= SETTLED)) return face;
      box = face.box;
    }
  }

  /** The same, to be shown and not to be built on: the face was in ``box`` a picture ago, which spares most looks. */
  async follow(pixels, box) {
    const face = await this.look(this.image(pixels), box);
    return face.sure && apart(face.box, box) <= FOLLOWED ? face : this.estimate(pixels);
  }

  async look(image, box) {
    const seen = await this.motion.run(only(this.motion, { image, box: this.tensor(Float32Array.from(box), 1, 3) }));
    const { canonical, rotation, delta, scale: [scale], translation, confidence: [confidence] } = Object.fromEntries(Object.entries(seen).map(([name, { data }]) => [name, data]));
    return { image, canonical, motion: { rotation, delta, scale, translation }, sure: confidence >= SURE, box: [translation[0], translation[1], scale] };
  }

  image(pixels) { return this.tensor(planes(pixels), 1, 3, this.size, this.size); }

  /** What the renderer takes from a picture, whatever face was seen in it. */
  async features({ image }) { return only(this.render, { image, ...await this.reference.run({ image }) }); }

  /** The person of a picture, by its features and the face seen in it, in another motion with canonical keypoints of its
   *  own, see posed: RGBA of size * size. */
  async picture(features, face, motion, canonical, view, neck) {
    const source = posed({ ...face.motion, scene: [] }, face.canonical), { rotation, keypoints, scene } = posed(motion, canonical, view, neck);
    const out = await this.render.run({ ...features, ...only(this.render, {
      source_keypoints: this.tensor(source.keypoints, 1, keypoints.length / 3, 3), source_rotation: this.tensor(source.rotation, 1, 3, 3),
      driving_keypoints: this.tensor(keypoints, 1, keypoints.length / 3, 3), driving_rotation: this.tensor(rotation, 1, 3, 3),
      driving_scene: this.tensor(scene, 1, scene.length / 2, 2),
    }) });
    const values = out.picture.data;
    for (let i = 0; i < values.length; i += 256) if (Number.isNaN(values[i])) throw new Error("the renderer gave NaN");
    const plane = this.size * this.size, picture = new Uint8ClampedArray(4 * plane).fill(255);
    for (let c = 0; c < 3; c++) for (let i = 0; i < plane; i++) picture[4 * i + c] = values[c * plane + i] * 255;
    return picture;
  }
}

/** Features that took long to compute, lent to the next pictures of the same shot: they are as heavy as drawing, and half a
 *  second later a face has moved, which the renderer follows, but hardly changed. */
export class Loan {
  offer(shot, features, face, begin, now) { this.kept = face.sure && now - begin > SLOW ? { shot, features, face, until: begin + LENT } : null; }
  /** { features, face } for a picture in whose shot ``face`` was seen, or null. */
  take(shot, face, now) {
    const { kept } = this;
    return kept && kept.shot === shot && now < kept.until && apart(face.box, kept.face.box) <= NEAR ? kept : null;
  }
}

const apart = (a, b) => Math.max(...a.map((value, i) => Math.abs(value - b[i])));
const only = (net, values) => Object.fromEntries(Object.entries(values).filter(([name]) => net.inputNames.includes(name)));
