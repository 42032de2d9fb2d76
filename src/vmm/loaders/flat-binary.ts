/** A flat binary: its bytes go to 1 MiB, as they are, and the guest starts at the first one. */
import { MiB } from '../../base/address.ts';
import { hex } from '../error.ts';
import { imageError, type LoadedImage } from './image.ts';

const FLAT_BINARY_ADDRESS = 1 * MiB;

/** Throws VmmError when the image is empty or does not fit into `memory` bytes. */
export function loadFlatBinary(bytes: Uint8Array, name: string, memory: number): LoadedImage {
  if (bytes.length === 0) throw imageError(name, 'flat binary', '0 bytes', 'at least one');
  const end = FLAT_BINARY_ADDRESS + bytes.length;
  if (end > memory) {
    throw imageError(name, 'memory', `${hex(memory)} bytes`, `at least ${hex(end)} for the image at 1 MiB`);
  }
  return {
    segments: [{ bytes, address: FLAT_BINARY_ADDRESS, memoryBytes: bytes.length }],
    entry: FLAT_BINARY_ADDRESS,
  };
}
