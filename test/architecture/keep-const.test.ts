import { expect, it } from 'vitest';

const { keepConst }: { keepConst: (text: string) => string } = await import(
  new URL('../../scripts/keep-const.mjs', import.meta.url).href
);

it.each([
  ['a constant', 'var A = 1;', 'const A = 1;'],
  ['a class', 'var A = class {};', 'const A = class {};'],
  ['a pattern', 'var { a, b: [c] } = o;', 'const { a, b: [c] } = o;'],
  ['what only its members are assigned to', 'var a = {}; a.b = 1; a[0]++;', 'const a = {}; a.b = 1; a[0]++;'],
  ['a local variable not', 'function f() { var a = 1; }', 'function f() { var a = 1; }'],
  ['what has no value yet not', 'var a; var b = a;', 'var a; const b = a;'],
  ['what is assigned to not', 'var a = 1; f(() => { a = 2; });', 'var a = 1; f(() => { a = 2; });'],
  ['what is assigned if absent not', 'var a = f(); a ??= 2;', 'var a = f(); a ??= 2;'],
  ['a counter not', 'var a = 1; f(() => --a);', 'var a = 1; f(() => --a);'],
  ['what a pattern assigns to not', 'var a = 1; ({ b: [a] } = c);', 'var a = 1; ({ b: [a] } = c);'],
  ['what a loop assigns to not', 'var a = 1; for (a of b);', 'var a = 1; for (a of b);'],
  ['text that looks like it not', 'f(`\nvar a = 1;`);', 'f(`\nvar a = 1;`);'],
])('in a bundle %s becomes const', (_what, bundle, kept) => {
  expect(keepConst(bundle)).toBe(kept);
});
