// Clicks on what has a place, told to Python: a token ('pick') or an alternative of one ('branch').
function choose(event) {
  const chosen = event.target.closest('[data-place]');
  if (!chosen) return;
  const place = Number(chosen.dataset.place);
  if (chosen.dataset.token === undefined) trigger('pick', { place });
  else trigger('branch', { place, token: Number(chosen.dataset.token) });
}
element.addEventListener('click', choose);
element.addEventListener('keydown', (event) => {
  if (event.key === 'Enter' && event.target.getAttribute('role') === 'button') choose(event);
});
