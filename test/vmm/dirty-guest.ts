/** The guest `dirty`: what it needs, and which pages of its area each of its phases writes to, as guests/dirty/dirty.c says. */
import { readFileSync } from 'node:fs';

const PREBUILT = new URL('../../guests/prebuilt/', import.meta.url);

export const MEMORY = 32 * 1024 * 1024;
/** The first page of its area. */
export const AREA_GFN = 4096;
export const PAGES = 1024;
/** Where it says that a phase is over. */
export const PHASE_PORT = 0x80;

export const dirtyGuest = () => ({
  imageName: 'dirty',
  image: readFileSync(new URL('dirty.elf', PREBUILT)),
  bootStub: readFileSync(new URL('boot.bin', PREBUILT)),
});

/** Pages of the area, by their places in it. */
export const ALL = Array.from({ length: PAGES }, (_, page) => page);
export const WRITTEN: readonly (readonly number[])[] = [
  ALL.filter((page) => page % 3 === 0),
  ALL.filter((page) => page % 64 === 0 || page % 64 === 63),
  ALL.filter((page) => (page % 17 === 5 && page < 1023) || (page % 17 === 6 && page > 5)),
  [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512],
  [],
];
