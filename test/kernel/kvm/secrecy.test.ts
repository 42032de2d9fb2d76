/** No host-side read shows a guest's secrets or keys, whatever it and its host did before; and a leak in any kind of place is found. HISTORIES makes it longer, SECRECY_SEED repeats it. */
import { describe, expect, it } from 'vitest';
import { PLACES, SecretMachine } from './secrecy.ts';

const SEED = Number(process.env['SECRECY_SEED'] ?? Date.now() % 0x7fff_ffff);
const HISTORIES = Number(process.env['HISTORIES'] ?? 400);
/** Histories that a machine lives through. */
const LIVES = 50;

describe(`secrecy (SECRECY_SEED=${SEED}, ${HISTORIES} histories)`, () => {
  it('holds after each history', () => {
    for (let first = 0; first < HISTORIES; first += LIVES) {
      const machine = new SecretMachine();
      for (let i = first; i < first + LIVES; i++) {
        machine.live(SEED + i);
        expect(
          machine.leak(),
          `history ${SEED + i} of the machine that began with ${SEED + first}`,
        ).toBeUndefined();
      }
      machine.close();
    }
  });

  for (const place of PLACES)
    it(`is seen to fail when a secret is planted: ${place}`, () => {
      const machine = new SecretMachine();
      machine.live(SEED);
      expect(machine.leak()).toBeUndefined();
      machine.plant(place);
      expect(machine.leak()).toBeDefined();
      machine.close();
    });
});
