/** Firmware images for tests, with a GUIDed table and SEV metadata as edk2 makes them. */
import { guidBytes } from '../../src/base/guid.ts';

export interface FirmwareImageOptions {
  readonly size?: number;
  /** { gpa, size, type } each; undefined: no metadata. */
  readonly sections?: readonly (readonly [gpa: number, size: number, type: number])[];
  readonly apEip?: number;
  readonly hashTableGpa?: number;
  readonly signature?: string;
  readonly version?: number;
  readonly metadataLength?: number;
  readonly metadataOffset?: number;
}

export const SECTIONS: readonly (readonly [number, number, number])[] = [
  [0x800000, 0x2000, 1],
  [0x803000, 0x1000, 2],
  [0x804000, 0x1000, 3],
  [0x805000, 0x1000, 0x10],
];

export function firmwareImage(options: FirmwareImageOptions = {}): Uint8Array {
  const { size = 0x2000, sections = SECTIONS, apEip = 0x80b004, hashTableGpa = 0x805010 } = options;
  const image = new Uint8Array(size);
  for (let at = 0; at < size; at++) image[at] = at * 7;
  const view = new DataView(image.buffer);
  const metadataAt = size - 0x400;
  image.set(new TextEncoder().encode(options.signature ?? 'ASEV'), metadataAt);
  view.setUint32(metadataAt + 4, options.metadataLength ?? 16 + 12 * sections.length, true);
  view.setUint32(metadataAt + 8, options.version ?? 1, true);
  view.setUint32(metadataAt + 12, sections.length, true);
  sections.forEach(([gpa, bytes, type], index) => {
    for (const [field, value] of [gpa, bytes, type].entries()) {
      view.setUint32(metadataAt + 16 + 12 * index + 4 * field, value, true);
    }
  });
  let at = size - 32;
  const put = (guid: string, data: Uint8Array, length = data.length + 18): void => {
    at -= 16;
    image.set(guidBytes(guid), at);
    at -= 2;
    view.setUint16(at, length, true);
    at -= data.length;
    image.set(data, at);
  };
  const u32 = (...values: number[]): Uint8Array => new Uint8Array(Uint32Array.from(values).buffer);
  const end = at;
  put('96b582de-1fb2-45f7-baea-a366c55a082d', new Uint8Array(0));
  put('dc886566-984a-4798-a75e-5585a7bf67cc', u32(options.metadataOffset ?? 0x400));
  put('00f771de-1a7e-4fcb-890e-68c77e2fb44e', u32(apEip));
  put('7255371f-3a3b-4b04-927b-1da6efa8d454', u32(hashTableGpa, 0x400));
  view.setUint16(end - 18, end - at, true);
  return image;
}
