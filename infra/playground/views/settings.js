import { heading } from '../components.js'

export async function show(place) {
  place.append(heading('Settings'))
}
