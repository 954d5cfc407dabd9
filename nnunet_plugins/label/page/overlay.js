/** Labels over a picture: a tint inside, a line on the contour, as sharp as the screen. */

const sheet = document.createElement("canvas");

/**
 * Draw labels on a canvas.
 * @param {CanvasRenderingContext2D} target
 * @param {ImageBitmap} labels colours, clear where there is no label
 * @param {{x: number, y: number, width: number, height: number}} place on the canvas
 * @param {number} opacity of the tint, 0 to 1; the contour is always opaque
 * @param {number} line pixels of the contour
 */
export function drawLabels(target, labels, place, opacity, line) {
  const { width, height } = target.canvas;
  const left = Math.max(0, Math.floor(place.x));
  const top = Math.max(0, Math.floor(place.y));
  const wide = Math.min(width, Math.ceil(place.x + place.width)) - left;
  const high = Math.min(height, Math.ceil(place.y + place.height)) - top;
  if (wide <= 0 || high <= 0) return;
  sheet.width = wide;
  sheet.height = high;
  const context = sheet.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingEnabled = false;
  context.drawImage(labels, place.x - left, place.y - top, place.width, place.height);
  const pixels = context.getImageData(0, 0, wide, high);
  outline(pixels, wide, high, Math.round(255 * opacity), line);
  context.putImageData(pixels, 0, 0);
  target.drawImage(sheet, left, top);
}

/** Make all but the contours of equal areas as opaque as `alpha`. */
function outline(pixels, wide, high, alpha, line) {
  const values = new Uint32Array(pixels.data.buffer.slice(0));
  const bytes = pixels.data;
  for (let y = 0, i = 0; y < high; y += 1) {
    for (let x = 0; x < wide; x += 1, i += 1) {
      const value = values[i];
      if (!bytes[4 * i + 3]) continue;
      const contour =
        (x >= line && values[i - line] !== value) ||
        (x < wide - line && values[i + line] !== value) ||
        (y >= line && values[i - line * wide] !== value) ||
        (y < high - line && values[i + line * wide] !== value);
      bytes[4 * i + 3] = contour ? 255 : alpha;
    }
  }
}
