/** The module as the engine gets it. */
import { expect, it } from 'vitest';
import { MODULE } from '../../../../src/hardware/cpu/interpreter.generated.ts';

const CODE_SECTION = 10;

/** Lengths of the function bodies of a module (WebAssembly core specification, 5.5). */
function bodyLengths(module: Uint8Array): number[] {
  let at = 8;
  const number = (): number => {
    let value = 0;
    for (let shift = 0; ; shift += 7) {
      const byte = module[at++]!;
      value += (byte & 0x7f) * 2 ** shift;
      if (byte < 0x80) return value;
    }
  };
  for (;;) {
    const id = module[at++];
    const bytes = number();
    if (id === CODE_SECTION) break;
    at += bytes;
  }
  return Array.from({ length: number() }, () => {
    const length = number();
    at += length;
    return length;
  });
}

it('the hot loop is so small that V8 gives its registers out with care', () => {
  // With 45,600 bytes it has less than 8192 virtual registers, with 47,000 more: TurboFan falls back to its mid-tier allocator, and guests run a tenth slower.
  expect(Math.max(...bodyLengths(Buffer.from(MODULE, 'base64')))).toBeLessThan(46_000);
});
