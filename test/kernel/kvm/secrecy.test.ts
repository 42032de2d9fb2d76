/** No host-side read shows a guest's secrets or keys, whatever it and its host did before; and a leak in any kind of place is found. HISTORIES makes it longer, SECRECY_SEED repeats it. */
import { describe, expect, it } from 'vitest';
import { SecretMachine } from './secrecy.ts';
import type { Place } from './secrecy-search.ts';
import { SecretGuest } from './secret-guest.ts';

const SEED = Number(process.env['SECRECY_SEED'] ?? Date.now() % 0x7fff_ffff);
const HISTORIES = Number(process.env['HISTORIES'] ?? 400);
/** Histories that a machine lives through: enough for each kind of event to happen. */
const LIVES = 50;
/** Of a busy machine, in ms: otherwise it takes two seconds. */
const PATIENCE = 120_000;

describe(`secrecy (SECRECY_SEED=${SEED}, ${HISTORIES} histories)`, () => {
  for (let first = 0; first < HISTORIES; first += LIVES)
    it(
      `holds after each of histories ${first} to ${first + LIVES - 1} of a scripted guest`,
      () => {
        const machine = new SecretMachine();
        for (let i = first; i < first + LIVES; i++) {
          machine.live(SEED + i);
          expect(machine.search.leaks(), `history ${i}`).toEqual([]);
        }
        const missing = [...machine.happened].filter(([, times]) => times === 0);
        expect(missing, 'kinds that never happened').toEqual([]);
        machine.close();
      },
      PATIENCE,
    );

  for (let first = 0; first < HISTORIES / 4; first += LIVES)
    it(
      `holds after each of histories ${first} to ${first + LIVES - 1} of a guest whose code runs`,
      () => {
        const guest = new SecretGuest();
        for (let i = first; i < first + LIVES; i++) {
          guest.live(SEED + i);
          expect(guest.search.leaks(), `history ${i}`).toEqual([]);
        }
        expect(guest.isInVmsa).toBe(true);
        const missing = [...guest.happened].filter(([, times]) => times === 0);
        expect(missing, 'deeds that never happened').toEqual([]);
        guest.close();
      },
      PATIENCE,
    );

  // Where a leak is seen: by its own path, and where that is memory, by the others that lead there.
  const PLANTED: readonly (readonly [Place, readonly Place[]])[] = [
    ['process memory', ['process memory', 'frames']],
    ['kvm_run', ['kvm_run', 'frames']],
    ['frames', ['frames']],
    ['DMA', ['DMA']],
    ['guest_memfd', ['guest_memfd']],
    ['firmware buffers', ['firmware buffers', 'DMA']],
    ['answers to ioctls', ['answers to ioctls']],
    ['traces', ['traces']],
    ['reports', ['reports']],
    ['logs', ['logs']],
  ];
  for (const [place, seen] of PLANTED)
    it(`is seen to fail when a secret is planted: ${place}`, () => {
      const machine = new SecretMachine();
      machine.live(SEED);
      expect(machine.search.leaks()).toEqual([]);
      machine.search.plant(place, machine.messages.key);
      expect(machine.search.leaks()).toEqual(seen.map((place) => ({ secret: 'VMPCK 0', place })));
      machine.close();
    });
});
