// What ONNX Runtime for JavaScript says for one file; the same function under node and in a browser.
async function answer(ort, entry, bytes) {
  const arrays = { float32: Float32Array, float16: Uint16Array, int64: BigInt64Array };
  const line = { file: entry.file };
  try {
    const session = await ort.InferenceSession.create(bytes, { logSeverityLevel: 4 });
    const feed = {};
    for (const { name, dtype, shape, data } of entry.inputs) {
      const values = arrays[dtype].from(dtype === "int64" ? data.map(BigInt) : data);
      feed[name] = new ort.Tensor(dtype, values, shape);
    }
    line.outputs = {};
    for (const [key, tensor] of Object.entries(await session.run(feed))) {
      const { buffer, byteOffset, length } = tensor.data; // the bits of a float16, also where JavaScript has that type
      const values = tensor.type === "float16" ? new Uint16Array(buffer, byteOffset, length) : tensor.data;
      line.outputs[key] = { dtype: tensor.type, shape: Array.from(tensor.dims), data: Array.from(values, Number) };
    }
  } catch (err) {
    line.error = String(err.message || err).replace(/\s+/g, " ").slice(0, 2000);
  }
  return line;
}

if (typeof module !== "undefined") module.exports = answer;
