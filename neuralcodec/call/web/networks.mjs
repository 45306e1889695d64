// The networks of a pack with onnxruntime-web: what neuralcodec/inference.py does. Knows no packets and no browser.
import { place, posed } from "./bitstream.mjs";
import { findFace, planes } from "./face.mjs";

const LOOKS = 3, SETTLED = 0.005; // of the motion network at a reference, as in Python

export class Networks {
  /** ort: onnxruntime-web; load: name of a graph to a promise of its bytes; providers: of onnxruntime-web, best first. */
  static async open(ort, load, size, providers = ["wasm"]) {
    const networks = new Networks();
    [networks.ort, networks.size] = [ort, size];
    for (const name of ["detector", "motion", "reference", "render"]) {
      networks[name] = await ort.InferenceSession.create(await load(name), { executionProviders: providers });
    }
    return networks;
  }

  tensor(data, ...shape) { return new this.ort.Tensor("float32", data, shape); }

  /** The face of a picture of which nothing is known yet: the motion network's outputs as typed arrays, and the box. */
  async estimate(pixels) {
    const image = this.tensor(planes(pixels), 1, 3, this.size, this.size);
    let box = await findFace(pixels, this.size, async (picture) => {
      const { heatmap, box } = await this.detector.run({ image: this.tensor(picture, 1, 3, 160, 160) });
      return { heatmap: heatmap.data, box: box.data, cells: heatmap.dims[3] };
    });
    for (let look = 1; ; look++) {
      const seen = await this.motion.run(only(this.motion, { image, box: this.tensor(Float32Array.from(box), 1, 3) })), before = box;
      box = [seen.translation.data[0], seen.translation.data[1], seen.scale.data[0]];
      const moved = Math.max(...box.map((value, i) => Math.abs(value - before[i])));
      if (look === LOOKS || (look > 1 && moved <= SETTLED)) return { image, box, ...Object.fromEntries(Object.entries(seen).map(([name, { data }]) => [name, data])) };
    }
  }

  /** What the renderer takes from a reference, its canonical keypoints, how sure it is (0..1) that there is a
   *  face, and that face's motion. */
  async features(pixels) {
    const { image, canonical, rotation, delta, scale: [scale], translation, confidence: [confidence] } = await this.estimate(pixels);
    const keypoints = place(canonical, delta, rotation, scale, translation);
    const feeds = only(this.render, {
      image, ...await this.reference.run({ image }),
      source_keypoints: this.tensor(keypoints, 1, keypoints.length / 3, 3), source_rotation: this.tensor(Float32Array.from(rotation), 1, 3, 3),
    });
    return { feeds, canonical, confidence, motion: { rotation, delta, scale, translation } };
  }

  /** The reference's person in another motion, see posed: RGBA of size * size. */
  async picture({ feeds, canonical }, motion, view, neck) {
    const { rotation, keypoints, scene } = posed(motion, canonical, view, neck);
    const out = await this.render.run({ ...feeds, ...only(this.render, {
      driving_keypoints: this.tensor(keypoints, 1, keypoints.length / 3, 3), driving_rotation: this.tensor(rotation, 1, 3, 3),
      driving_scene: this.tensor(scene, 1, scene.length / 2, 2),
    }) });
    const values = out.picture.data, plane = this.size * this.size, picture = new Uint8ClampedArray(4 * plane).fill(255);
    for (let c = 0; c < 3; c++) for (let i = 0; i < plane; i++) picture[4 * i + c] = values[c * plane + i] * 255;
    return picture;
  }
}

const only = (net, values) => Object.fromEntries(Object.entries(values).filter(([name]) => net.inputNames.includes(name)));
