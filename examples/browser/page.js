// The page of an uncertainty file: draw a digit or drop a picture, and read what the file answers.
//
// What is said about classes and thresholds comes from the sidecar of the file: another file needs no other page.

import * as ort from "./ort.wasm.min.mjs";
import { pixelsOfPicture, pixelsOfStrokes, traced } from "./pixels.js";

const FILE = "digits.onnx";
const PEN = 0.075; // of the side of the sheet
const [MOST_BYTES, MOST_POINTS] = [20e6, 40e6]; // of a picture

const $ = (id) => document.getElementById(id);
const sheet = $("sheet").getContext("2d");
let [strokes, picture] = [[], null]; // what is on the sheet
let asking = null; // while an answer is computed: whether the sheet has changed since

/** Open a file by its sidecar; an error where the two do not belong together. */
async function opened(name) {
  const fetched = async (part) => {
    const response = await fetch(part);
    if (!response.ok) throw new Error(`${part} is not here`);
    return response.arrayBuffer();
  };
  const [bytes, sidecar] = await Promise.all([fetched(name), fetched(`${name}.json`)]);
  const { file, inputs, metadata } = JSON.parse(new TextDecoder().decode(sidecar));
  const digest = [...new Uint8Array(await crypto.subtle.digest("SHA-256", bytes))];
  const hex = digest.map((byte) => byte.toString(16).padStart(2, "0")).join("");
  if (hex !== file.sha256) throw new Error(`${name} is not the file that ${name}.json describes`);
  ort.env.wasm.numThreads = 1; // more need headers that a plain server does not send
  const frame = { side: inputs[0].shape.at(-1), box: Number(metadata["frame.box"]), pen: Number(metadata["frame.pen"]) };
  const { classes, "bensemble.reject": thresholds = {} } = metadata;
  return { file, classes, thresholds, frame, input: inputs[0].name, session: await ort.InferenceSession.create(bytes) };
}

/** What the file answers to pixels: an array for each output. */
async function answered({ session, input, frame }, pixels) {
  const found = await session.run({ [input]: new ort.Tensor("float32", pixels, [1, 1, frame.side, frame.side]) });
  return Object.fromEntries(Object.entries(found).map(([name, { data }]) => [name, Array.from(data, Number)]));
}

/** Which thresholds of the file an answer crosses: a p-value at its level or below, another number above. */
function crossed(answer, thresholds) {
  const crosses = ([name, limit]) => !(name.endsWith("pvalue") ? answer[name][0] > limit : answer[name][0] <= limit);
  return Object.entries(thresholds).filter(crosses).map(([name]) => name);
}

/** An answer in words: that it is a stranger, or which classes it may be, the likeliest first. */
function inWords(answer, { classes, thresholds }) {
  const reasons = crossed(answer, thresholds);
  if (reasons.some((name) => name.startsWith("novelty"))) return "I have never seen such a thing.";
  const order = classes.map((_, i) => i).sort((i, j) => answer.probs[j] - answer.probs[i]);
  const inside = order.filter((i) => answer.prediction_set[i]);
  const likely = inside.length ? inside : order.slice(0, 2); // no class is likely enough for the set
  const words = likely.map((i) => `${/^(8|11|18|[aeiou])/i.test(classes[i]) ? "an" : "a"} ${classes[i]}`);
  const said = words.length > 1 ? `${words.slice(0, -1).join(", ")} or ${words.at(-1)}` : words[0];
  return reasons.length ? `I cannot tell. Perhaps ${said}.` : `${said[0].toUpperCase()}${said.slice(1)}.`;
}

/** Show an answer: each number as text for people, with all its digits in `value`. */
function show(answer, model) {
  const number = (value, text) => Object.assign(document.createElement("data"), { value, textContent: text });
  $("words").textContent = inWords(answer, model);
  $("answer").className = crossed(answer, model.thresholds).length ? "strange" : "";
  answer.probs.forEach((p, i) => {
    const bar = $("bars").children[i];
    bar.style.setProperty("--share", p);
    bar.lastChild.replaceChildren(number(p, `${(100 * p).toFixed(1)} %`));
  });
  const [entropy, pvalue] = [answer.entropy[0], answer.novelty_pvalue[0]];
  $("entropy").replaceChildren(number(entropy, `${entropy.toFixed(3)} nats`));
  $("pvalue").replaceChildren(number(pvalue, pvalue.toFixed(4)));
}

/** Show the pixels that the network reads. */
function showPixels(pixels, { side }) {
  const image = new ImageData(side, side);
  pixels.forEach((ink, i) => image.data.set([...Array(3).fill(Math.round(255 * ink)), 255], 4 * i));
  Object.assign($("pixels"), { width: side, height: side }).getContext("2d").putImageData(image, 0, 0);
}

/** Draw the sheet again: the strokes, or the picture as large as it fits. */
function draw() {
  const { width, height } = sheet.canvas;
  sheet.clearRect(0, 0, width, height);
  sheet.strokeStyle = getComputedStyle(sheet.canvas).color;
  traced(sheet, strokes, PEN * width);
  if (!picture) return;
  const scale = Math.min(width / picture.naturalWidth, height / picture.naturalHeight);
  const [w, h] = [picture.naturalWidth * scale, picture.naturalHeight * scale];
  sheet.drawImage(picture, (width - w) / 2, (height - h) / 2, w, h);
}

/** Empty the sheet, and say something in place of an answer. */
function clear(message = "Draw a digit.") {
  [strokes, picture] = [[], null];
  $("pixels").width = 0;
  $("words").textContent = message;
  $("answer").className = "empty";
  $("answer").ariaBusy = "false";
  draw();
}

/** Answer to the sheet as it is now. While an answer is computed, one more round waits, for the last state. */
async function ask(model) {
  draw();
  $("answer").ariaBusy = "true";
  if (asking) return void (asking.again = true);
  do {
    asking = { again: false };
    const pixels = picture ? pixelsOfPicture(picture, model.frame) : pixelsOfStrokes(strokes, model.frame);
    if (!pixels) clear("There is nothing on this picture.");
    const answer = pixels && (await answered(model, pixels).catch((err) => clear(err.message)));
    if (answer && (picture || strokes.length)) showPixels(pixels, model.frame), show(answer, model);
  } while (asking.again && (picture || strokes.length));
  asking = null;
  $("answer").ariaBusy = "false";
}

/** Open a picture that was dropped or chosen. Its size is known before its points are unpacked. */
async function pictureOf(file) {
  if (!file) throw new Error("That is no file. Drop a picture from a folder.");
  if (!file.type.startsWith("image/")) throw new Error(`“${file.name}” is no picture. Drop a PNG or JPEG.`);
  if (file.size > MOST_BYTES) throw new Error(`“${file.name}” is larger than ${MOST_BYTES / 1e6} MB. Drop a smaller one.`);
  const cannot = new Error(`“${file.name}” cannot be read as a picture.`);
  const image = Object.assign(new Image(), { src: URL.createObjectURL(file) });
  await new Promise((resolve, reject) => Object.assign(image, { onload: resolve, onerror: () => reject(cannot) }));
  const points = image.naturalWidth * image.naturalHeight;
  if (points > MOST_POINTS) throw new Error(`“${file.name}” has ${Math.round(points / 1e6)} million pixels. Drop a smaller one.`);
  return image;
}

/** Let the page answer whenever the sheet changes. */
function start(model) {
  const element = (tag, text = "") => Object.assign(document.createElement(tag), { textContent: text });
  $("bars").replaceChildren(...model.classes.map(() => element("li")));
  model.classes.forEach((name, i) => $("bars").children[i].append(element("span", name), element("span"), element("span")));
  $("level").textContent = model.thresholds.novelty_pvalue ?? "none";
  $("file").textContent = `${model.file.name}, ${Math.round(model.file.bytes / 1000)} kB`;

  const point = ({ offsetX, offsetY }) => [offsetX, offsetY].map((at) => (at * sheet.canvas.width) / sheet.canvas.clientWidth);
  sheet.canvas.onpointerdown = (event) => {
    sheet.canvas.setPointerCapture(event.pointerId);
    picture = null;
    strokes.push([point(event)]);
    ask(model);
  };
  sheet.canvas.onpointermove = (event) => {
    if (!strokes.length || !sheet.canvas.hasPointerCapture(event.pointerId)) return;
    strokes.at(-1).push(point(event));
    ask(model);
  };
  const take = (file) => {
    $("answer").ariaBusy = "true";
    const taken = (image) => (([strokes, picture] = [[], image]), ask(model));
    pictureOf(file).then(taken).catch((err) => clear(err.message));
  };
  $("choose").onchange = ({ target }) => (take(target.files[0]), (target.value = ""));
  document.ondragover = (event) => event.preventDefault();
  document.ondrop = (event) => (event.preventDefault(), take(event.dataTransfer.files[0]));
  $("clear").onclick = () => clear();
  matchMedia("(prefers-color-scheme: dark)").onchange = draw;
  clear();
}

opened(FILE).then(start).catch((err) => clear(`${err.message}. Run “make browser”.`));
