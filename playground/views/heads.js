// Attention: a small picture of every head, the chosen one as a large picture or as lines, and a scrubber over what the
// model wrote. Token texts only ever become text nodes.
const SVG = 'http://www.w3.org/2000/svg';
const state = { layer: 0, head: 0, view: 'lines', upTo: null, hover: null, bytes: null, shown: null };

function make(tag, classes, text) {
  const node = document.createElement(tag);
  if (classes) node.className = classes;
  if (text !== undefined) node.textContent = text;
  return node;
}

function visible(token) {
  const shown = token.replace(/Ġ|▁| /g, '␣').replace(/Ċ|\n/g, '⏎');
  return shown.length > 14 ? shown.slice(0, 13) + '…' : shown || '∅';
}

function weight(layer, head, query, key) {
  const { heads, queries, keys } = state.shown;
  return state.bytes[((layer * heads + head) * queries.length + query) * keys.length + key] / 255;
}

function colour() {
  const value = getComputedStyle(element).getPropertyValue('--a').trim() || '#3554c8';
  const digits = value.replace('#', '');
  return [0, 2, 4].map((i) => parseInt(digits.slice(i, i + 2), 16));
}

function paint(canvas, layer, head) {
  const { queries, keys } = state.shown;
  canvas.width = keys.length;
  canvas.height = queries.length;
  const context = canvas.getContext('2d');
  const image = context.createImageData(keys.length, queries.length);
  const [red, green, blue] = colour();
  for (let query = 0; query < Math.min(queries.length, state.upTo); query++) {
    for (let key = 0; key < keys.length; key++) {
      const place = 4 * (query * keys.length + key);
      image.data.set([red, green, blue, Math.round(255 * Math.sqrt(weight(layer, head, query, key)))], place);
    }
  }
  context.putImageData(image, 0, 0);
}

function grid() {
  const { layers, heads, off } = state.shown;
  const box = make('div', 'head-grid');
  box.style.gridTemplateColumns = `2.4em repeat(${heads}, minmax(0, 1fr))`;
  box.append(make('span'));
  for (let head = 0; head < heads; head++) box.append(make('span', 'head-label', `head ${head}`));
  for (let layer = 0; layer < layers; layer++) {
    box.append(make('span', 'head-label', `layer ${layer}`));
    for (let head = 0; head < heads; head++) {
      const cell = make('button', 'head-cell');
      cell.type = 'button';
      cell.setAttribute('aria-label', `layer ${layer}, head ${head}`);
      if (layer === state.layer && head === state.head) cell.classList.add('is-chosen');
      if (off.some((pair) => pair[0] === layer && pair[1] === head)) cell.classList.add('is-off');
      const canvas = make('canvas');
      paint(canvas, layer, head);
      cell.append(canvas);
      cell.addEventListener('click', () => {
        Object.assign(state, { layer, head });
        draw();
        trigger('headpick', { layer, head });
      });
      box.append(cell);
    }
  }
  return box;
}

function lines() {
  const { queries, keys } = state.shown;
  const count = Math.min(queries.length, state.upTo);
  const height = 20 * Math.max(count, keys.length) + 26;
  const svg = document.createElementNS(SVG, 'svg');
  svg.setAttribute('viewBox', `0 0 560 ${height}`);
  svg.setAttribute('class', 'head-lines');
  svg.setAttribute('role', 'img');
  svg.setAttribute('aria-label', `attention of layer ${state.layer}, head ${state.head}`);
  const label = (text, x, y, anchor, faint) => {
    const node = document.createElementNS(SVG, 'text');
    node.setAttribute('x', x);
    node.setAttribute('y', y);
    node.setAttribute('text-anchor', anchor);
    if (faint) node.setAttribute('class', 'is-faint');
    node.textContent = text;
    svg.append(node);
    return node;
  };
  label(state.shown.same ? 'reads' : 'answer', 190, 12, 'end', true);
  label(state.shown.same ? 'looks at' : 'source', 370, 12, 'start', true);
  for (let query = 0; query < count; query++) {
    if (state.hover !== null && state.hover !== query) continue;
    for (let key = 0; key < keys.length; key++) {
      const value = weight(state.layer, state.head, query, key);
      if (value < 0.03) continue;
      const line = document.createElementNS(SVG, 'line');
      line.setAttribute('x1', 198); line.setAttribute('y1', 28 + 20 * query);
      line.setAttribute('x2', 362); line.setAttribute('y2', 28 + 20 * key);
      line.setAttribute('stroke-width', 1 + 2.5 * value);
      line.setAttribute('stroke-opacity', value);
      svg.append(line);
    }
  }
  for (let query = 0; query < count; query++) {
    const node = label(visible(queries[query]), 190, 32 + 20 * query, 'end', state.hover !== null && state.hover !== query);
    node.addEventListener('mouseenter', () => { if (state.hover !== query) { state.hover = query; redraw(); } });
  }
  keys.forEach((token, key) => label(visible(token), 370, 32 + 20 * key, 'start', false));
  svg.addEventListener('mouseleave', () => { state.hover = null; redraw(); });
  return svg;
}

function heatmap() {
  const canvas = make('canvas');
  paint(canvas, state.layer, state.head);
  canvas.style.aspectRatio = `${canvas.width} / ${canvas.height}`;
  canvas.style.maxWidth = '520px';
  const note = make('p', 'note', 'rows: the token that reads, top to bottom · columns: the token it looks at, left to right');
  canvas.addEventListener('mousemove', (event) => {
    const key = Math.floor(event.offsetX / canvas.clientWidth * canvas.width);
    const query = Math.floor(event.offsetY / canvas.clientHeight * canvas.height);
    const { queries, keys } = state.shown;
    if (queries[query] === undefined || keys[key] === undefined) return;
    const share = Math.round(100 * weight(state.layer, state.head, query, key));
    note.textContent = `${visible(queries[query])} looks at ${visible(keys[key])}: ${share} %`;
  });
  const box = make('div');
  box.append(canvas, note);
  return box;
}

function switcher() {
  const box = make('div', 'view-switch');
  for (const [view, name] of [['lines', 'Lines'], ['map', 'Heatmap']]) {
    const button = make('button', state.view === view ? 'is-chosen' : '', name);
    button.type = 'button';
    button.setAttribute('aria-pressed', state.view === view);
    button.addEventListener('click', () => { state.view = view; draw(); });
    box.append(button);
  }
  const { start, queries } = state.shown;
  if (start < queries.length) {
    const name = make('label', 'scrub', 'written, tokens ');
    const slider = make('input');
    Object.assign(slider, { type: 'range', min: start, max: queries.length, value: state.upTo });
    const count = make('output', '', `${state.upTo - start} of ${queries.length - start}`);
    slider.addEventListener('input', () => {
      state.upTo = Number(slider.value);
      count.textContent = `${state.upTo - start} of ${queries.length - start}`;
      redraw();
      element.querySelectorAll('.head-cell canvas').forEach((canvas, i) => {
        paint(canvas, Math.floor(i / state.shown.heads), i % state.shown.heads);
      });
    });
    name.append(slider, count);
    box.append(name);
  }
  return box;
}

function redraw() {
  const stage = element.querySelector('.head-stage');
  if (stage) stage.replaceChildren(state.view === 'lines' ? lines() : heatmap());
}

function draw() {
  const root = element.querySelector('.heads');
  if (!root || !state.shown) return;
  const side = make('div');
  side.append(make('p', 'head-caption', 'All heads: click one'), grid());
  const main = make('div');
  const caption = `Layer ${state.layer}, head ${state.head}`;
  main.append(make('p', 'head-caption', caption), switcher(), make('div', 'head-stage'));
  root.replaceChildren(side, main);
  redraw();
}

function load() {
  const value = props.value;
  if (!value || !value.weights) {
    const root = element.querySelector('.heads');
    if (root) root.replaceChildren();
    return;
  }
  state.shown = value;
  state.bytes = Uint8Array.from(atob(value.weights), (character) => character.charCodeAt(0));
  state.layer = Math.min(state.layer, value.layers - 1);
  state.head = Math.min(state.head, value.heads - 1);
  state.upTo = value.queries.length;
  state.hover = null;
  draw();
}

watch('value', load);
load();
// The events of this view: 'headpick'.
