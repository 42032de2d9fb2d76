import { describe, expect, it } from 'vitest';
import { AssertionError } from '../../../src/vmm/error.ts';
import { DiscardRequirements } from '../../../src/vmm/memory/discard-requirements.ts';

type Kind = 'disable' | 'uncoordinatedDisable' | 'require' | 'coordinatedRequire';
const kinds: Kind[] = ['disable', 'uncoordinatedDisable', 'require', 'coordinatedRequire'];

describe('a discard call fails with EBUSY against what is held', () => {
  // [held, called, result]
  const rows: [Kind, Kind, number][] = [
    ['disable', 'disable', 0],
    ['uncoordinatedDisable', 'disable', 0],
    ['require', 'disable', -16],
    ['coordinatedRequire', 'disable', -16],
    ['disable', 'uncoordinatedDisable', 0],
    ['uncoordinatedDisable', 'uncoordinatedDisable', 0],
    ['require', 'uncoordinatedDisable', -16],
    ['coordinatedRequire', 'uncoordinatedDisable', 0],
    ['disable', 'require', -16],
    ['uncoordinatedDisable', 'require', -16],
    ['require', 'require', 0],
    ['coordinatedRequire', 'require', 0],
    ['disable', 'coordinatedRequire', -16],
    ['uncoordinatedDisable', 'coordinatedRequire', 0],
    ['require', 'coordinatedRequire', 0],
    ['coordinatedRequire', 'coordinatedRequire', 0],
  ];
  it.each(rows)('%s is held: %s gives %i', (held, called, result) => {
    const discards = new DiscardRequirements();
    expect(discards[held]('take')).toBe(0);
    expect(discards[called]('take')).toBe(result);
    expect(discards[held]('release')).toBe(0);
    expect(discards[called]('take')).toBe(0);
  });
});

it.each(kinds)('%s counts: each take is released once, and a refused one holds nothing', (kind) => {
  const discards = new DiscardRequirements();
  expect([discards[kind]('take'), discards[kind]('take')]).toEqual([0, 0]);
  expect([discards[kind]('release'), discards[kind]('release')]).toEqual([0, 0]);
  expect(() => discards[kind]('release')).toThrow(AssertionError);

  discards.require('take');
  expect(discards.disable('take')).toBe(-16);
  expect(discards.disabled).toBe(0);
});
