// From a drawing or a picture to what the network reads: ink from 0 to 1 in a square of side x side pixels.
// A frame { side, box, pen } comes from the file and says how the training images lie in theirs, in pixels: the longer side
// of a digit is `box` long, and its strokes are `pen` wide.

const FINE = 8; // parts of a pixel along each axis
const LARGEST = 320; // sides of a picture are reduced to this
const FAINT = 0.25; // less than this share of the darkest ink is paper

/** The pixels of strokes, lists of points [x, y]. Their size and place on the page do not matter, nor does its pen. */
export function pixelsOfStrokes(strokes, { side, box, pen }) {
  const [xs, ys] = [0, 1].map((axis) => strokes.flat().map((point) => point[axis]).sort((a, b) => a - b));
  const [left, right, top, bottom] = [xs[0], xs.at(-1), ys[0], ys.at(-1)];
  const context = blank(side * FINE, side * FINE);
  context.setTransform(FINE, 0, 0, FINE, (side * FINE) / 2, (side * FINE) / 2);
  const scale = (box - pen) / Math.max(right - left, bottom - top, 1);
  traced(context, strokes, pen, ([x, y]) => [(x - (left + right) / 2) * scale, (y - (top + bottom) / 2) * scale]);
  return averaged(context, side);
}

/** The pixels of a picture: what differs from its edge, cut out and scaled like a digit; null for an empty picture. */
export function pixelsOfPicture(picture, { side, box }) {
  const shrink = Math.min(1, LARGEST / Math.max(picture.naturalWidth, picture.naturalHeight));
  const [width, height] = [picture.naturalWidth, picture.naturalHeight].map((size) => Math.ceil(size * shrink));
  const context = blank(width, height, "white"); // white shows where a picture is transparent
  context.drawImage(picture, 0, 0, width, height);
  const image = context.getImageData(0, 0, width, height);
  const [ink, cut] = inkOf(image);
  if (!ink) return null;
  ink.forEach((value, i) => image.data.fill(255 * value, 4 * i, 4 * i + 3));
  context.putImageData(image, 0, 0);
  const frame = blank(side * FINE, side * FINE);
  const [w, h] = cut.slice(2).map((size) => (size * box * FINE) / Math.max(...cut.slice(2)));
  frame.drawImage(context.canvas, ...cut, (side * FINE - w) / 2, (side * FINE - h) / 2, w, h);
  return averaged(frame, side);
}

/** Draw strokes with a round pen; a stroke of one point is a dot. */
export function traced(context, strokes, pen, place = (point) => point) {
  Object.assign(context, { lineWidth: pen, lineCap: "round", lineJoin: "round" });
  for (const stroke of strokes) {
    context.beginPath();
    context.moveTo(...place(stroke[0]));
    stroke.forEach((point) => context.lineTo(...place(point)));
    context.stroke();
  }
}

/** How far each point of an image is from the gray of its edge, from 0 to 1, and the box [x, y, width, height] of it. */
function inkOf({ data, width, height }) {
  const gray = Float32Array.from({ length: width * height }, (_, i) => (data[4 * i] + data[4 * i + 1] + data[4 * i + 2]) / 3);
  const at = (i) => [i % width, Math.floor(i / width)];
  const isEdge = (i) => [0, width - 1].includes(at(i)[0]) || [0, height - 1].includes(at(i)[1]);
  const edge = gray.filter((_, i) => isEdge(i)).sort();
  const paper = edge[edge.length >> 1];
  const away = gray.map((value) => Math.abs(value - paper));
  const most = away.reduce((a, b) => Math.max(a, b), 0);
  if (most < 20) return []; // one colour
  const ink = away.map((value) => Math.max(0, (value / most - FAINT) / (1 - FAINT)));
  let [left, top, right, bottom] = [width, height, 0, 0];
  ink.forEach((value, i) => {
    if (!value) return;
    [left, right] = [Math.min(left, at(i)[0]), Math.max(right, at(i)[0] + 1)];
    [top, bottom] = [Math.min(top, at(i)[1]), Math.max(bottom, at(i)[1] + 1)];
  });
  return [ink, [left, top, right - left, bottom - top]];
}

/** The mean of each pixel's parts, in steps of 1/255, so that the page can show exactly what the network reads. */
function averaged(context, side) {
  const { data } = context.getImageData(0, 0, side * FINE, side * FINE);
  const sums = new Float64Array(side * side);
  for (let i = 0; i < data.length / 4; i++) {
    sums[Math.floor(i / (side * FINE * FINE)) * side + Math.floor((i % (side * FINE)) / FINE)] += data[4 * i];
  }
  return Float32Array.from(sums, (sum) => Math.round(sum / FINE ** 2) / 255);
}

/** A canvas of one colour, ready to draw in white. */
function blank(width, height, colour = "black") {
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  Object.assign(context, { fillStyle: colour, strokeStyle: "white", imageSmoothingQuality: "high" });
  context.fillRect(0, 0, width, height);
  return context;
}
