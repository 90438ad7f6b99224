// Answers prompts with a package in the unmodified transformers.js; reads JSON, prints JSON.
//
//   node answer.mjs MODULES REQUEST
//
// MODULES is the folder that holds node_modules, REQUEST a file:
//
//   { "package": folder,
//     "wasm": a build of onnxruntime-web, or null for onnxruntime-node,
//     "prompts": [{ "input_ids": [...], "pixel_values": file of float32 or null,
//                   "image_grid_thw": [[t, h, w], ...], "steps": number of tokens }],
//     "questions": [{ "text": ..., "pictures": [{ "file": of RGB bytes, "width", "height" }] }] }
//
// Each prompt gets the logits of its first token and a greedy answer that no end token stops. Each
// question is made ready by the package's own prepare.mjs; its pixel values go into a file.

import { readFileSync, readdirSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";
import { pathToFileURL } from "node:url";

const [modules, file] = process.argv.slice(2);
const request = JSON.parse(readFileSync(file, "utf8"));
const require = createRequire(path.join(modules, "package.json"));

if (request.wasm) {
  const dist = path.join(modules, "node_modules", "onnxruntime-web", "dist");
  const ort = await import(pathToFileURL(path.join(dist, "ort.node.min.mjs")));
  const build = pathToFileURL(path.join(dist, request.wasm)).href;
  ort.env.wasm.wasmPaths = { mjs: `${build}.mjs`, wasm: `${build}.wasm` };
  ort.env.wasm.numThreads = 1;
  globalThis[Symbol.for("onnxruntime")] = { ...ort, default: ort }; // the library takes this one
}

const js = await import(pathToFileURL(require.resolve("@huggingface/transformers")));
const { AutoModelForImageTextToText, AutoProcessor, RawImage, Tensor, env } = js;
env.allowRemoteModels = false;
env.useWasmCache = false;

const options = {};
if (request.wasm) {
  // In Node the library hands over paths, which onnxruntime-web cannot open.
  const onnx = path.join(request.package, "onnx");
  const data = readdirSync(onnx).filter((name) => name.includes(".onnx_data"));
  options.device = "auto"; // the library knows no device here; the session options name it
  options.use_external_data_format = false;
  options.session_options = {
    executionProviders: ["wasm"],
    externalData: data.map((name) => ({ path: name, data: readFileSync(path.join(onnx, name)) })),
  };
}

function integers(numbers, dims) {
  return new Tensor("int64", BigInt64Array.from(numbers, BigInt), dims);
}

function inputsOf(prompt) {
  const length = prompt.input_ids.length;
  const inputs = {
    input_ids: integers(prompt.input_ids, [1, length]),
    attention_mask: integers(Array(length).fill(1), [1, length]),
  };
  if (prompt.pixel_values) {
    const bytes = readFileSync(prompt.pixel_values);
    const pixels = new Float32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
    const grids = prompt.image_grid_thw;
    const patches = grids.reduce((sum, [t, h, w]) => sum + t * h * w, 0);
    inputs.pixel_values = new Tensor("float32", pixels, [patches, pixels.length / patches]);
    inputs.image_grid_thw = integers(grids.flat(), [grids.length, 3]);
  }
  return inputs;
}

const answers = { prompts: [], questions: [] };
if (request.prompts.length > 0) {
  const model = await AutoModelForImageTextToText.from_pretrained(request.package, options);
  for (const prompt of request.prompts) {
    const { logits } = await model(inputsOf(prompt));
    const sequence = await model.generate({
      ...inputsOf(prompt),
      max_new_tokens: prompt.steps,
      do_sample: false,
      eos_token_id: null,
    });
    const tokens = Array.from(sequence.data, Number).slice(prompt.input_ids.length);
    answers.prompts.push({ tokens, logits: Array.from(logits.data) });
  }
}

if (request.questions.length > 0) {
  const processor = await AutoProcessor.from_pretrained(request.package);
  const code = path.join(request.package, "prepare.mjs");
  const { prepare } = await import(pathToFileURL(code));
  for (const [i, { text, pictures }] of request.questions.entries()) {
    const content = pictures.map(({ file, width, height }) => ({
      type: "image",
      image: new RawImage(new Uint8Array(readFileSync(file)), width, height, 3),
    }));
    content.push({ type: "text", text });
    const inputs = await prepare(processor, [{ role: "user", content }]);
    const pixels = `${file}.${i}.f32`;
    if (inputs.pixel_values) writeFileSync(pixels, inputs.pixel_values.data);
    answers.questions.push({
      input_ids: Array.from(inputs.input_ids.data, Number),
      pixel_values: inputs.pixel_values ? pixels : null,
      image_grid_thw: Array.from(inputs.image_grid_thw?.data ?? [], Number),
    });
  }
}
console.log(JSON.stringify(answers));
