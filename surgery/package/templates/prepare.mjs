// Makes the inputs of @huggingface/transformers {{ version }} for a conversation with pictures.
//
// It takes the place of `processor(text, images)`, which counts several pictures as frames of one,
// and resizes pictures by another method than PyTorch: in browsers without antialiasing.

const MARK = "<|image_pad|>"; // in the text, one for each token of a picture
const BITS = 22; // of the fraction of a weight

// Messages are those of a chat template; { type: "image", image } in their content is a RawImage.
// No picture gets more than `pixels` pixels.
export async function prepare(processor, messages, pixels = Infinity) {
  const parts = messages.flatMap(({ content }) => content);
  const images = parts.flatMap(({ type, image }) => (type === "image" ? [image] : []));
  const bare = ({ image, ...part }) => part;
  const turns = messages.map(({ role, content }) => ({
    role,
    content: Array.isArray(content) ? content.map(bare) : content,
  }));
  let text = processor.apply_chat_template(turns, { add_generation_prompt: true });
  const found = [];
  for (const image of images) {
    found.push(await processor.image_processor(fit(image, processor.image_processor, pixels)));
  }
  const square = processor.image_processor.config.merge_size ** 2;
  const counts = found.map((one) => one.pixel_values.dims[0] / square);
  text = text.replaceAll(MARK, (mark) => mark.repeat(counts.shift() ?? 0));
  const inputs = processor.tokenizer(text, { add_special_tokens: false });
  if (found.length > 0) {
    inputs.pixel_values = stack(found.map((one) => one.pixel_values));
    inputs.image_grid_thw = stack(found.map((one) => one.image_grid_thw));
  }
  return inputs;
}

// The rows of tensors of one width, one below the other.
function stack(tensors) {
  const [{ type, dims, data, constructor: Tensor }] = tensors;
  const all = new data.constructor(tensors.reduce((sum, one) => sum + one.data.length, 0));
  let end = 0;
  for (const one of tensors) {
    all.set(one.data, end);
    end += one.data.length;
  }
  return new Tensor(type, all, [all.length / dims[1], dims[1]]);
}

// A picture with sides that are whole tokens, as PyTorch's processor makes it.
function fit(image, { config }, pixels) {
  const unit = config.patch_size * config.merge_size;
  const most = Math.max(Math.min(pixels, config.max_pixels), config.min_pixels);
  const { width: w, height: h } = image;
  if (Math.max(w, h) > 200 * Math.min(w, h)) throw new Error(`a picture of ${w} x ${h} is too long`);
  let sides = [w, h].map((side) => even(side / unit) * unit);
  const area = sides[0] * sides[1];
  if (area > most) {
    const beta = Math.sqrt((h * w) / most);
    sides = [w, h].map((side) => Math.max(unit, Math.floor(side / beta / unit) * unit));
  } else if (area < config.min_pixels) {
    const beta = Math.sqrt(config.min_pixels / (h * w));
    sides = [w, h].map((side) => Math.ceil((side * beta) / unit) * unit);
  }
  return resize(image.clone().rgb(), ...sides);
}

// The nearest integer; of two, the even one.
function even(x) {
  const up = Math.round(x);
  return up - x === 0.5 && up % 2 === 1 ? up - 1 : up;
}

// Pillow's bicubic resampling, number for number: along rows, then along columns.
function resize(image, width, height) {
  const { data, width: w, height: h, constructor: RawImage } = image;
  const rows = w === width ? data : along(data, h, w, width, 3);
  const whole = h === height ? rows : along(rows, 1, h, height, width * 3);
  return new RawImage(whole, width, height, 3);
}

// Resize the middle axis of [outer, old, inner].
function along(data, outer, old, size, inner) {
  const taps = kernel(old, size);
  const out = new Uint8ClampedArray(outer * size * inner);
  let to = 0;
  for (let y = 0; y < outer; y++) {
    for (const { first, weights } of taps) {
      const from = (y * old + first) * inner;
      for (let x = 0; x < inner; x++) out[to++] = weigh(data, from + x, inner, weights);
    }
  }
  return out;
}

function weigh(data, from, step, weights) {
  let total = 1 << (BITS - 1);
  for (let i = 0; i < weights.length; i++) total += data[from + i * step] * weights[i];
  return total >> BITS;
}

// For each of `size` new pixels the first of `old` ones that counts, and the weights from there on.
function kernel(old, size) {
  const scale = old / size;
  const stretch = Math.max(scale, 1);
  return Array.from({ length: size }, (_, i) => {
    const center = scale * (i + 0.5);
    const first = Math.max(Math.trunc(center - 2 * stretch + 0.5), 0);
    const end = Math.min(Math.trunc(center + 2 * stretch + 0.5), old);
    const weights = [];
    for (let k = first; k < end; k++) weights.push(cubic((k - center + 0.5) * (1 / stretch)));
    const sum = weights.reduce((a, b) => a + b, 0);
    const whole = weights.map((weight) => {
      const scaled = (weight / sum) * (1 << BITS);
      return Math.trunc(scaled + (scaled < 0 ? -0.5 : 0.5));
    });
    return { first, weights: Int32Array.from(whole) };
  });
}

function cubic(x) {
  const d = Math.abs(x);
  if (d < 1) return (1.5 * d - 2.5) * d * d + 1;
  return d < 2 ? (((d - 5) * d + 8) * d - 4) * -0.5 : 0;
}
